# make        sets up the environment and builds a spoken bundle for every cell of params.yaml
# make test   sets up the environment and runs every test
# make lint   style and types
# make prove  shows what a fleet promises, on S3 and a Ray cluster of three nodes; a quarter of an hour
# make parity compares the networks with the official package, live: SIZE=tiny, 0.6b or 1.7b (random weights)
# make golden computes the values anew that `make test` compares with
# make cell   builds one cell: VARIANT=, PRECISION=, LAYOUTS= of other runtimes; REMOTE= shares artifacts through DVC
# make fleet  builds all cells on many machines, or CELLS='*-int8': ADDRESS= of a Ray cluster, else on this machine
# make plan   prints which cells are stale
# make publish releases that cell: TO="publish=hub publish.owner=<name> publish.tag=v1.0.0"
# make summary prints what is built as a table in Markdown
# make bench  builds synthetic bundles of full size and lets them speak in turns with other engines; ENGINE=, ROUNDS=
# make workflows checks the workflows of GitHub Actions, with actionlint

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The stages call `python`.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: all setup test lint prove parity golden only cell fleet plan remote publish summary bench workflows
.DEFAULT_GOAL := all

all: setup
	$(BIN)/dvc repro
	$(BIN)/python -m pipeline.report

# A process for each core, each with one thread: more only slow these small networks down.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

# The promises of a fleet, on S3 and three nodes of Ray; a quarter of an hour.
prove: setup
	$(BIN)/pytest tests/fleet/prove_fleet.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The official package needs an environment of its own, and 7 GB of memory to compare at 0.6b, 13 at 1.7b.
REFERENCE ?= build/reference
SIZE ?= tiny
FRAMES = $(if $(filter tiny,$(SIZE)),64,16)
LIVE = build/parity/$(SIZE)
COMPARED = $(patsubst conf/variant/%.yaml,%,$(wildcard conf/variant/$(SIZE)-*.yaml))

parity: setup
	@test -n "$(COMPARED)" || { echo "error: SIZE is tiny, 0.6b or 1.7b, not $(SIZE)" >&2; exit 1; }
	bash tests/reference/install.sh $(REFERENCE)
	for variant in $(COMPARED); do \
	  python -m pipeline.download variant=$$variant variant.source=synthetic artifacts=$(LIVE) && \
	  $(REFERENCE)/bin/python tests/reference/make_golden.py \
	    $(LIVE)/$$variant/checkpoint $(LIVE)/$$variant/golden.npz --frames $(FRAMES) || exit 1; \
	done
	PARITY=$(LIVE) $(BIN)/pytest tests/parity

golden:
	$(MAKE) parity SIZE=tiny
	for golden in build/parity/tiny/*/golden.npz; do \
	  cp $$golden tests/golden/$$(basename $$(dirname $$golden)).npz || exit 1; \
	done

VARIANT ?= tiny-custom-voice
PRECISION ?= int8
LAYOUTS ?=
CELL ?= $(VARIANT)-$(PRECISION)
comma := ,
empty :=
list = [$(subst $(empty) $(empty),$(comma) ,$(strip $(1)))]

# For a machine that builds nothing else: params.yaml names these cells alone.
VARIANTS ?= $(VARIANT)
PRECISIONS ?= $(PRECISION)
only:
	printf 'variants: %s\nprecisions: %s\nlayouts: %s\n' \
	  '$(call list,$(VARIANTS))' '$(call list,$(PRECISIONS))' '$(call list,$(LAYOUTS))' > params.yaml

# With a remote, only what no machine has built yet is built, and only what that needs is fetched. CELL may be a variant:
# what its cells share.
cell: setup remote
	$(if $(REMOTE),$(BIN)/python -m pipeline.fleet.build_group 'cells=$(call list,$(CELL) $(LAYOUTS:%=%-$(CELL)))',\
	  $(BIN)/dvc repro smoke@$(CELL) $(LAYOUTS:%=layout_bundle@%-$(CELL)))

remote: setup
	$(if $(REMOTE),@$(BIN)/dvc remote add --quiet --local --force --default shared $(REMOTE))

CELLS ?= *
ADDRESS ?=
fleet: setup remote
	$(BIN)/python -m pipeline.fleet 'cells=$(CELLS)' $(if $(ADDRESS),address=$(ADDRESS))
	$(BIN)/python -m pipeline.report

plan: setup remote
	@$(BIN)/python -m pipeline.fleet.plan 'cells=$(CELLS)'

TO ?=
publish: setup
	for layout in native $(LAYOUTS); do \
	  $(BIN)/python -m pipeline.publish variant=$(VARIANT) precision=$(PRECISION) layout=$$layout $(TO) || exit 1; \
	done

summary: setup
	@$(BIN)/python -m pipeline.summary

# The cells of the benchmark are not those of params.yaml, which is put back.
BENCH = synthetic-0.6b-custom-voice synthetic-1.7b-custom-voice
ENGINE ?= build/engine
ROUNDS ?= 7

bench: setup
	mkdir -p build
	cp params.yaml build/params.yaml.before; \
	trap 'mv build/params.yaml.before params.yaml' EXIT; trap 'exit 130' INT TERM; \
	$(MAKE) only VARIANT="$(BENCH)" PRECISION="int8 int4" LAYOUTS=openarc && \
	$(BIN)/dvc repro $(foreach variant,$(BENCH),bundle@$(variant)-int8) \
	  bundle@$(firstword $(BENCH))-int4 layout_bundle@openarc-$(firstword $(BENCH))-int8
	for size in 0.6b 1.7b; do \
	  $(BIN)/python -m benchmarks.compare $$size --rounds $(ROUNDS) --engine $(ENGINE) --reference $(REFERENCE) && \
	  $(BIN)/python -m benchmarks.table build/bench/$$size.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.growth artifacts/$(firstword $(BENCH))/int8/bundle

workflows:
	actionlint

setup: $(VENV)/.installed

# The stamp is written last: an interrupted installation is repeated.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV); the first time takes a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; set PYTHON=")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "error: this Python has no venv; apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[serve,build,release,fleet,dev]'
	@# For the score stage. Of Resemblyzer only the weights are used: what it asks for is large and partly broken.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps Resemblyzer
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt pesq 2>/dev/null || \
	  echo "No pesq: it is compiled, which takes a C compiler and Python's headers. Only the score stage wants it."
	@touch $@
