# Two commands: `make demo` judges examples/requests.jsonl, `make test` passes the tests. Both set up .venv from nothing,
# once; a later call goes straight to work. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q
NATIVE := $(shell find csrc -type f) setup.py

.PHONY: help demo test real sanitize arm compile compile-3.6 check bench lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    judge examples/requests.jsonl with the embedded model"
	@echo "make test    lint, types and tests (13 to 16 minutes on 2 shared cores)"
	@echo "make real    the same against a published checkpoint, SmolLM2-135M-Instruct"
	@echo "make sanitize  the C++ kernels under ASan, UBSan and TSan, without Python"
	@echo "make arm     the C++ kernels of 64-bit ARM, under an emulator on other machines"
	@echo "make compile  the Triton kernels for five targets, without a GPU: a covering part; compile-3.6 the same with Triton 3.6"
	@echo "make check   what takes longer: more random cases, the soak, the embedded model's figures"
	@echo "make bench   kernel and engine timings"
	@echo "make clean   removes .venv and what was built"

# torch is installed first and by its exact version, so that no other package can pull a larger build of it.
$(VENV)/core.done: requirements/core.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, this is {v.major}.{v.minor}")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' requirements/core.txt)"
	$(PIP) install -r requirements/core.txt
	@touch $@

# Editable, without build isolation (an isolated build would fetch its own torch) and without dependencies (they are pinned above).
$(VENV)/built.done: $(VENV)/core.done $(NATIVE) pyproject.toml
	$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/dev.done: $(VENV)/built.done requirements/dev.txt
	$(PIP) install -r requirements/dev.txt
	@touch $@

demo: $(VENV)/built.done
	$(PY) examples/demo.py

lint: $(VENV)/dev.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	find csrc -name '*.cpp' -o -name '*.hpp' -o -name '*.inl' | xargs $(VENV)/bin/clang-format --dry-run --Werror

test: lint
	$(PY) -m pytest

real: $(VENV)/dev.done
	$(PY) tests/real/smollm2.py .real/smollm2
	$(PY) -m pytest tests/real

sanitize: $(VENV)/dev.done
	$(PY) csrc/test/run.py --sanitizer address --count 200
	$(PY) csrc/test/run.py --sanitizer thread --count 50

# Not on an ARM machine itself: Debian's g++-aarch64-linux-gnu and qemu-user-static. The second CPU has no dot products.
arm: $(VENV)/dev.done
	$(PY) csrc/test/run.py --machine aarch64 --count 40 --best neondot
	$(PY) csrc/test/run.py --machine aarch64 --cpu cortex-a53 --count 5 --best neon

compile: $(VENV)/built.done
	$(PY) -m spct_kernels.compile_check

# Triton 3.6 goes with torch 2.11. Its folder stands before the environment's own Triton, and only compiles: that needs no other torch.
$(VENV)/triton-3.6/done: $(VENV)/built.done
	$(PIP) install --no-deps --upgrade --target $(@D) triton==3.6.0
	@touch $@

compile-3.6: $(VENV)/triton-3.6/done
	PYTHONPATH=$(VENV)/triton-3.6 $(PY) -m spct_kernels.compile_check

check: test real sanitize compile compile-3.6
	RANDOM_CONFIGS=1000 $(PY) -m pytest tests/kernels/test_random_configs.py
	$(PY) -m pytest tests/long

bench: $(VENV)/dev.done
	$(PY) -m pytest bench --benchmark-only

clean:
	rm -rf $(VENV) .real build dist *.egg-info engine/*.egg-info
	find kernels -name '*.so' -delete
