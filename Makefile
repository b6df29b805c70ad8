# Three commands: `make demo`, `make check` and `make test`. All need Python 3.11 or later, and nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SMOLLM2 := .models/SmolLM2-135M-Instruct
LLAMA_TOKENIZER := .models/llama-tokenizer
TRANSFORMERS_4 := .models/transformers-4
REGISTRY := .models/docker-registry

.PHONY: demo check lint quick test wheel fuzz test-clients test-s3 faults bench-recover bench-quantize bench-growth bench-validate bench-tasks bench-gpu clean

demo: .venv/installed ## the whole pipeline on the embedded model
	$(BIN)/camelpress demo

check: lint quick ## before every commit: format, lint, types, import contracts, the quick tests

lint: .venv/installed-test ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

quick: .venv/installed-test ## the tests of tests/quick.txt: under a minute on two cores
	$(BIN)/pytest --numprocesses 2 --dist loadscope @tests/quick.txt

test: lint $(SMOLLM2) $(LLAMA_TOKENIZER) $(TRANSFORMERS_4) $(REGISTRY) ## everything: format, lint, types, imports, all tests
	$(BIN)/pytest --numprocesses auto --dist loadscope --cov --cov-report term:skip-covered

wheel: .venv/installed-test ## sdist and wheel, in dist/
	$(BIN)/python -m build --outdir dist .

fuzz: .venv/installed-test ## 1,000,000 mutated inputs of every parser; what they broke is kept in fuzz-faults
	$(BIN)/python -m tests.fuzz --inputs 1000000

test-clients: .venv/installed-test ## our checkpoints in other people's loaders, and theirs in ours; writes docs/compatibility.md
	tests/clients/make_env.sh gptqmodel autogptq autoround llmcompressor
	$(BIN)/pytest tests/clients -m client --compatibility docs/compatibility.md

test-s3: .venv/installed-test ## buckets, on moto's server
	test -d .venv-s3 || tests/models/s3_env.sh .venv-s3
	.venv-s3/bin/python -m pytest tests/publish/test_s3_bucket.py

EVERY ?= 1
faults: .venv/installed-test ## every command killed, and failed by its disk, at each operation (hours; EVERY=8: each eighth)
	PYTHONPATH=tests/support OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/support/fault_sweep.py --every $(EVERY)

bench-recover: .venv/installed ## recover against the published algorithm and mere copying (27 GB of disk)
	$(BIN)/python -m benchmarks.recover

bench-quantize: .venv/installed $(SMOLLM2) $(LLAMA_TOKENIZER) ## quantize against its peers (hours; CAMELPRESS_DATA)
	tests/clients/make_env.sh gptqmodel llmcompressor autoround
	$(BIN)/python -m benchmarks.quantize

bench-growth: .venv/installed $(LLAMA_TOKENIZER) ## time and memory of quantize against layers and samples
	$(BIN)/python -m benchmarks.quantize.growth

bench-validate: .venv/installed $(SMOLLM2) $(LLAMA_TOKENIZER) ## validate against lm-eval and the processor's limit (CAMELPRESS_DATA)
	tests/clients/make_env.sh lmeval
	$(BIN)/python -m benchmarks.validate

bench-tasks: .venv/installed $(SMOLLM2) ## the card's columns on a model and its 4-bit candidate, within 30 minutes (CAMELPRESS_DATA)
	$(BIN)/python -m benchmarks.validate.card_benchmarks $(SMOLLM2)

bench-gpu: .venv/installed-test ## one GPU: ceilings, kernels, blocks, scoring and decoding, in 8 minutes
	$(BIN)/python -m benchmarks.gpu

.PHONY: docs pictures
docs: .venv/installed-docs ## the site, in site/; a dead link or a missing anchor fails
	$(BIN)/mkdocs build --strict

pictures: .venv/installed ## docs/pictures, from a run of the demo; needs chromium
	$(BIN)/python docs/make/pictures.py

.venv/installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) --editable '.[test]'
	touch $@

.venv/installed-docs: .venv/installed
	$(PIP) --editable '.[docs]'
	touch $@

$(SMOLLM2): .venv/installed-test
	test -d $@ || $(BIN)/python tests/models/smollm2.py $@

# Needs npm; without it the tests that want this tokenizer are skipped and say so.
$(LLAMA_TOKENIZER): .venv/installed-test
	test -d $@ || ! command -v npm || $(BIN)/python tests/models/llama_tokenizer.py $@

$(TRANSFORMERS_4): .venv/installed-test
	test -d $@ || $(BIN)/python tests/models/old_transformers.py $@

# Needs Debian; without it the tests that push to a registry are skipped and say so.
$(REGISTRY):
	command -v docker-registry || tests/models/docker_registry.sh $@ || true

clean:
	rm -rf .venv .models camelpress-demo site .mypy_cache .ruff_cache .pytest_cache .hypothesis
