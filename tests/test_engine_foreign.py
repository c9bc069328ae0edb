"""Operands of other libraries: the call goes, as it came, to what attnpy.integrations names for their type."""

import gc
import sys
import types
import weakref

import numpy as np
import pytest
from cases import ARRAY_FUNCTIONS, CASES, small_cases
from laws import same_results
from small import KEY, QUERY, VALUE, WANTED, Subclass, same, sdpa
from test_engine_memory import blocks_after

import attnpy
from attnpy import _core, integrations

MASK, LSE = np.ones((6, 7), bool), np.zeros((2, 4, 6), np.float32)


def new_type(*bases, **members):
    return type("Box", bases, {"__module__": "boxes.inner", **members})


class Library:
    """A library called "boxes" whose calls are recorded."""

    def __init__(self):
        self.calls, self.asked, self.answer = [], [], lambda name, arguments: (name, arguments)
        self.box = new_type()()

    def handle(self, name, arguments):
        self.calls.append((name, arguments))
        return self.answer(name, arguments)

    def handler_of(self, kind):
        self.asked.append(kind)
        return self.handle


@pytest.fixture
def library(monkeypatch):
    made, module = Library(), types.ModuleType("attnpy_boxes")
    module.handler_of = made.handler_of
    monkeypatch.setitem(sys.modules, "attnpy_boxes", module)
    monkeypatch.setitem(integrations.LIBRARIES, "boxes", "attnpy_boxes")
    return made


TABLE = np.ones((8, QUERY.shape[-1] // 2))
DISTANCES = np.ones((4, 1, 3)), TABLE, TABLE, False, np.zeros(6, int), np.zeros(7, int)  # relative_bias, rotary
GOOD = {
    "scaled_dot_product_attention": (
        QUERY, KEY, VALUE, MASK, 0.0, False, None, np.ones((6, 7)), 0, None, None, np.ones(4), np.ones(4),
        [6, 6], [7, 7], *DISTANCES, None, False, np.empty_like(WANTED),
    ),
    "attention_weights": (
        QUERY, KEY, MASK, False, None, np.ones((6, 7)), 0, None, None, np.ones(4), np.ones(4),
        [6, 6], [7, 7], *DISTANCES, [1, 2], None,
    ),
    "attention_received": (
        QUERY, KEY, MASK, False, None, np.ones((6, 7)), 0, None, None, np.ones(4), np.ones(4), [6, 6], [7, 7],
        *DISTANCES, None,
    ),
    "merge_attention": ([WANTED, WANTED], [LSE, LSE], None),
    "merge_attention_backward": (WANTED, [WANTED, WANTED], [LSE, LSE], WANTED, LSE, LSE, None),
    "softmax_backward": (QUERY, QUERY, -1, QUERY > 0, np.empty_like(QUERY)),
    "log_softmax_backward": (QUERY, QUERY, -1, QUERY > 0, np.empty_like(QUERY)),
    "logsumexp_backward": (QUERY[..., 0], QUERY, QUERY[..., 0], -1, QUERY > 0, False, None),
    "softmax": (QUERY, -1, QUERY > 0, np.empty_like(QUERY)),
    "log_softmax": (QUERY, -1, QUERY > 0, np.empty_like(QUERY)),
    "logsumexp": (QUERY, -1, QUERY > 0, False, None),
}  # fmt: skip
ARRAYS = [
    (name, place)
    for name, arguments in GOOD.items()
    for place, x in enumerate(arguments)
    if isinstance(x, np.ndarray | list) or place == len(arguments) - 1  # the last is out=
]


@pytest.mark.parametrize(("name", "place"), ARRAYS, ids=str)
def test_every_operand_hands_the_call_over(library, name, place):
    arguments = list(GOOD[name])
    getattr(_core, name)(*arguments)
    if name == "merge_attention" and place == 2:
        arguments[place] = (None, library.box)
    elif name == "merge_attention_backward" and place == 6:
        arguments[place] = (None, (None, library.box))
    else:
        arguments[place] = library.box
    got = getattr(_core, name)(*arguments)
    assert got[0] == name and type(got[1]) is tuple and len(got[1]) == len(arguments)
    assert all(ours is theirs for ours, theirs in zip(got[1], arguments))
    assert len(library.calls) == 1


def test_both_outs_and_boxes_in_sequences(library):
    for out in ((library.box, None), (None, library.box)):
        assert sdpa(QUERY, KEY, VALUE, return_lse=True, out=out)[1][-1] is out
    for outputs, lses in (((WANTED, library.box), [LSE, LSE]), ([WANTED, WANTED], (library.box, LSE))):
        assert attnpy.merge_attention(outputs, lses)[1] == (outputs, lses, None)


def test_whatever_the_handler_answers(library):
    for answer in (None, 5, WANTED, "text"):
        library.answer = lambda name, arguments: answer  # noqa: B023
        assert sdpa(library.box, KEY, VALUE) is answer


def test_the_handler_may_call_again(library):
    library.answer = lambda name, arguments: getattr(_core, name)(
        *[QUERY if x is library.box else x for x in arguments]
    )
    same(sdpa(library.box, KEY, VALUE), WANTED)


def test_errors_of_the_handler_come_through(library):
    def fail(name, arguments):
        raise KeyError("boxes are shut")

    library.answer = fail
    for _ in range(2):
        with pytest.raises(KeyError, match="boxes are shut"):
            sdpa(QUERY, library.box, VALUE)
    same(sdpa(QUERY, KEY, VALUE), WANTED)


def test_errors_of_the_question_come_through_and_it_is_asked_again(library, monkeypatch):
    monkeypatch.setitem(integrations.LIBRARIES, "boxes", "attnpy_nowhere")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="attnpy_nowhere"):
            sdpa(library.box, KEY, VALUE)
    monkeypatch.setitem(integrations.LIBRARIES, "boxes", "attnpy_boxes")
    assert sdpa(library.box, KEY, VALUE)[0] == "scaled_dot_product_attention"


def test_a_type_is_asked_about_once(library):
    for _ in range(3):
        sdpa(library.box, library.box, VALUE)
        attnpy.softmax(library.box)
    assert library.asked == [type(library.box)]
    sub = type("Sub", (type(library.box),), {"__module__": "elsewhere"})()
    assert attnpy.softmax(sub)[1][0] is sub
    assert library.asked == [type(library.box), type(sub)]


def test_nobody_is_asked_about_what_numpy_knows(monkeypatch):
    def refuse(kind):
        raise AssertionError(kind)

    monkeypatch.setattr(integrations, "handler_of", refuse)
    same(sdpa(QUERY, KEY, VALUE, kv_lengths=7, causal_offset=[0, np.int64(0)], sinks=None), WANTED)
    for x in (2, 2.5, True, np.float32(2), np.bool_(True), [1.0], (1.0,), [[1, 2]], np.ones(2).view(Subclass)):
        axis = () if np.ndim(x) == 0 else -1
        assert attnpy.softmax(x, axis).dtype is not None


def test_other_array_likes_are_asked_about_once_and_converted(monkeypatch):
    asked = []

    class Converts:
        def __array__(self, dtype=None, copy=None):
            return QUERY

    def none(kind):
        asked.append(kind)

    monkeypatch.setattr(integrations, "handler_of", none)
    for _ in range(3):
        same(sdpa(Converts(), KEY, VALUE), WANTED)
    assert asked == [Converts]


def test_wrong_calls_are_refused_before_or_by_the_handler(library):
    with pytest.raises(TypeError, match="takes 24 arguments"):
        _core.scaled_dot_product_attention(library.box)
    with pytest.raises(TypeError, match="query has dtype"):
        sdpa(QUERY.astype(complex), KEY, VALUE, bias=library.box)
    assert not library.calls


def test_types_are_not_kept(library):
    """A table entry goes with its type: no type lives on, and no entry meets a later type at the same address."""
    for known in (True, False):
        if not known:
            del integrations.LIBRARIES["boxes"]
        for _ in range(20):
            kind = new_type(__array__=lambda self, dtype=None, copy=None: QUERY)
            got = sdpa(kind(), KEY, VALUE)
            assert (got[0] == "scaled_dot_product_attention") if known else (got.tobytes() == WANTED.tobytes())
            library.calls.clear()
            library.asked.clear()
            gone = weakref.ref(kind)
            del kind, got
            gc.collect()
            assert gone() is None


def test_references_are_given_back(library):
    library.answer = lambda name, arguments: None
    arrays = [QUERY, KEY, VALUE, MASK, library.box, library.handle]
    parts = [WANTED, library.box]

    def calls():
        sdpa(QUERY, library.box, VALUE, MASK)
        sdpa(QUERY.tolist(), KEY, VALUE, MASK, out=library.box)
        attnpy.merge_attention(parts, [LSE, LSE])
        attnpy.softmax(QUERY, where=library.box)
        library.calls.clear()

    def failing():
        library.answer = lambda name, arguments: 1 // 0
        for x in (library.box, [library.box]):
            with pytest.raises((ZeroDivisionError, TypeError)):
                attnpy.softmax(x)
        library.calls.clear()

    for action in (calls, failing):
        action()
        before = [sys.getrefcount(x) for x in arrays]
        assert blocks_after(action, 2000) < 500  # of errors, Python's free lists keep some 200
        assert [sys.getrefcount(x) for x in arrays] == before


@pytest.mark.parametrize("name", [name for name in ARRAY_FUNCTIONS if hasattr(_core, name)])
def test_every_function_by_its_row(library, name):
    """Each array in each case in a box: the call comes over whole, once, and its answer is what returns."""

    class Boxed(type(library.box)):
        def __init__(self, array):
            self.array, self.shape = array, array.shape

    library.answer = lambda name, arguments: getattr(_core, name)(
        *[x.array if isinstance(x, Boxed) else x for x in arguments]
    )
    for shape, dtype, option in small_cases(name):
        call = CASES[name].make(shape, dtype, option)
        wanted = call()
        for operand, array in call.arrays.items():
            library.calls.clear()
            same_results(call, call(**{operand: Boxed(array)}), wanted, f"{operand} in a box")
            assert [handed for handed, _ in library.calls] == [name]
        boxes = {operand: Boxed(array) for operand, array in call.arrays.items()}
        same_results(call, call(**boxes), wanted, "everything in boxes")
