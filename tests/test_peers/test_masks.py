"""BlockMask beside Hugging Face's BigBird, SciPy's BSR arrays and PyTorch's flex attention."""

import numpy as np
import pytest

import attnpy
from attnpy import BlockMask

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
bigbird = pytest.importorskip("transformers.models.big_bird.modeling_big_bird")

HEADS, HIDDEN = 2, 16


class Drawn(bigbird.BigBirdBlockSparseAttention):
    """Remembers the blocks that it drew: for every head, those of each block of queries but the first and the last."""

    def _bigbird_block_rand_mask_with_head(self, *arguments, **named):
        self.drawn = super()._bigbird_block_rand_mask_with_head(*arguments, **named)
        return self.drawn


def layer(block_size, num_random):
    torch.manual_seed(0)
    config = transformers.BigBirdConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, block_size=block_size, num_random_blocks=num_random,
        attention_probs_dropout_prob=0.0, use_bias=True,
    )  # fmt: skip
    return Drawn(config, seed=3).double().train()  # in eval mode it draws block 0 again and again


def mask_of(drawn, block_size, length):
    """The first and last block, the window of three and the blocks drawn, for each head."""
    count, indptr, indices = length // block_size, [], []
    for head in drawn:
        for row in range(count):
            middle = {0, count - 1, row - 1, row, row + 1, *head[row - 1]} if 0 < row < count - 1 else range(count)
            indptr.append(len(indices))
            indices += sorted(middle)
        indptr.append(len(indices))
    indptr = np.reshape(indptr, (HEADS, count + 1))
    return BlockMask.from_blocks(indices=indices, indptr=indptr, block_size=block_size, shape=(HEADS, length, length))


@pytest.mark.parametrize(("block_size", "count"), [(16, 8), (16, 14), (64, 13), (24, 20)])
@pytest.mark.parametrize("valid", [1.0, 0.7])
def test_bigbird(block_size, count, valid):
    """Output and gradients of the block-sparse class in train mode, on the blocks that it drew.

    Both in float64: sums of at most 1300 terms of order 1.
    """
    length = block_size * count
    theirs = layer(block_size, 3)
    torch.manual_seed(1)
    x = torch.randn(2, length, HIDDEN, dtype=torch.float64)
    kept = torch.zeros(2, length, dtype=torch.float64)
    lengths = [length, int(length * valid)]
    for n, many in enumerate(lengths):
        kept[n, :many] = 1
    blocked, band, rows, keys = bigbird.BigBirdModel.create_masks_for_block_sparse_attn(kept, block_size)
    grad = torch.randn(2, length, HIDDEN, dtype=torch.float64) * kept[..., None]

    wanted, _ = theirs(x, band, rows, keys, blocked, blocked)
    parameters = list(theirs.parameters())
    gradients = torch.autograd.grad((wanted * grad).sum(), parameters)

    mask = mask_of(theirs.drawn, block_size, length) & BlockMask.lengths(length, length, lengths)
    query, key, value = (
        f(x).view(2, length, HEADS, -1).transpose(1, 2) for f in (theirs.query, theirs.key, theirs.value)
    )
    got = attnpy.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).reshape(2, length, HIDDEN)
    seen = kept.bool()
    np.testing.assert_allclose(got[seen].detach().numpy(), wanted[seen].detach().numpy(), rtol=0, atol=1e-12)
    for ours, theirs_ in zip(torch.autograd.grad((got * grad).sum(), parameters), gradients, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs_.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("block_size", "count"), [(16, 8), (16, 14), (24, 20)])
def test_bigbird_draws_as_many_blocks(block_size, count):
    """The same number of visible blocks in every row of blocks, the same fixed ones."""
    length = block_size * count
    theirs = layer(block_size, 3)
    np.random.seed(5)  # noqa: NPY002, its own generator
    plan = theirs._get_rand_attn_plan(length, block_size, 3)
    drawn = theirs._bigbird_block_rand_mask_with_head(length, length, block_size, block_size, HEADS, *plan)
    mask = mask_of(drawn, block_size, length).to_dense()[:, ::block_size, ::block_size]
    ours = BlockMask.bigbird(length, block_size=block_size, rng=np.random.default_rng(0))
    ours = ours.to_dense()[::block_size, ::block_size]
    assert (mask.sum(-1) <= ours.sum(-1)).all() and (mask.sum(-1) == ours.sum(-1)).mean() > 0.7
    fixed = BlockMask.bigbird(length, block_size=block_size, num_random=0, rng=np.random.default_rng(0))
    assert (mask >= fixed.to_dense()[::block_size, ::block_size]).all()


@pytest.mark.parametrize("block_size", [(1, 1), (8, 8), (64, 64), (20, 50), (100, 20)])
def test_bsr_arrays(block_size):
    sparse = pytest.importorskip("scipy.sparse")
    shape = (200, 300) if block_size[0] % 8 else (192, 320)
    rng = np.random.default_rng(0)
    dense = sparse.random_array(shape, density=0.01, rng=rng)
    array = sparse.bsr_array(dense, blocksize=block_size)
    mask = BlockMask.from_blocks(
        indices=array.indices, indptr=array.indptr, block_size=array.blocksize, shape=array.shape
    )
    array.data[:] = 1
    np.testing.assert_array_equal(mask.to_dense(), array.toarray() == 1)


RULES = {
    "causal": lambda b, h, q, k: q >= k,
    "window": lambda b, h, q, k: (q >= k) & (q - k <= 70),
    "heads": lambda b, h, q, k: (q + h * 10 >= k) | (k < b * 3),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_flex_attention(rule):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    theirs = flex.create_mask(RULES[rule], 2, 3, 150, 200, device="cpu").numpy()
    np.testing.assert_array_equal(BlockMask.from_function(RULES[rule], 150, 200, batch=2, heads=3).to_dense(), theirs)
