# make        sets up the environment and builds a bundle, which speaks, for every cell of params.yaml
# make test   sets up the environment and runs every test
# make lint   style and types
# make prove  shows what a fleet promises, on S3 and a Ray cluster of three nodes; a quarter of an hour
# make parity compares the networks with the official package, live: SIZE=tiny, 0.6b or 1.7b (random weights)
# make golden recomputes the values that `make test` compares with
# make cell   builds one cell of conf/: VARIANT=, PRECISION=, LAYOUTS= of other runtimes; REMOTE= shares it through DVC
# make fleet  builds all cells on many machines, or CELLS='*-int8': ADDRESS= of a Ray cluster, else on this machine
# make plan   prints which cells are stale, of params.yaml or of VARIANTS= and PRECISIONS=
# make publish releases that cell: TO="publish=hub publish.owner=<name> publish.tag=v1.0.0"
# make summary prints what is built as a table in Markdown
# make bench  builds synthetic bundles of full size and lets them speak in turns with other engines; ENGINE=, ROUNDS=
# make workflows checks the workflows of GitHub Actions, with actionlint

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: all setup test lint prove parity golden view cell fleet plan remote publish summary bench workflows
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
	  $(BIN)/python -m pipeline.download variant=$$variant variant.source=synthetic artifacts=$(LIVE) && \
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
list = [$(subst $(empty) $(empty),$(comma),$(strip $(1)))]

# Cells of conf/, whether or not params.yaml names them, are built in a view of this project that shares all but
# params.yaml: artifacts/, dvc.lock and DVC's cache. CELL may be a variant: what its cells share.
VIEW = build/cells
view: setup remote
	@$(BIN)/python -m pipeline.fleet.view '$(or $(VARIANTS),$(VARIANT))' '$(or $(PRECISIONS),$(PRECISION))' '$(LAYOUTS)'

# With a remote, only what no machine has built yet is built, and only what that needs is fetched.
cell: view
	$(if $(REMOTE),cd $(VIEW) && $(CURDIR)/$(BIN)/python -m pipeline.fleet.build_group \
	  'cells=$(call list,$(CELL) $(LAYOUTS:%=%-$(CELL)))',\
	  $(BIN)/dvc --cd $(VIEW) repro smoke@$(CELL) $(LAYOUTS:%=layout_bundle@%-$(CELL)))

remote: setup
	$(if $(REMOTE),@$(BIN)/dvc remote add --quiet --local --force --default shared $(REMOTE))

CELLS ?= *
ADDRESS ?=
fleet: setup remote
	$(BIN)/python -m pipeline.fleet 'cells=$(CELLS)' $(if $(ADDRESS),address=$(ADDRESS))
	$(BIN)/python -m pipeline.report

plan: $(if $(VARIANTS)$(PRECISIONS),view,remote)
	@cd $(if $(VARIANTS)$(PRECISIONS),$(VIEW),.) && $(CURDIR)/$(BIN)/python -m pipeline.fleet.plan 'cells=$(CELLS)'

TO ?=
publish: setup
	for layout in native $(LAYOUTS); do \
	  $(BIN)/python -m pipeline.publish variant=$(VARIANT) precision=$(PRECISION) layout=$$layout $(TO) || exit 1; \
	done

summary: setup
	@$(BIN)/python -m pipeline.summary

# benchmarks/dvc.yaml lets the bundles speak; they are cells like any other.
BENCH = synthetic-0.6b-custom-voice synthetic-1.7b-custom-voice
export ENGINE ?= build/engine
export REFERENCE
export ROUNDS ?= 7

bench:
	$(MAKE) view VARIANTS="$(BENCH)" PRECISIONS="int8 int4" LAYOUTS=openarc
	$(BIN)/dvc --cd $(VIEW) repro $(BENCH:%=bundle@%-int8) bundle@$(firstword $(BENCH))-int4 \
	  layout_bundle@openarc-$(firstword $(BENCH))-int8
	$(BIN)/dvc repro benchmarks/dvc.yaml

workflows:
	actionlint

setup: $(VENV)/.installed

# With uv if it is on the PATH, with pip if not. Both would take torch with CUDA, gigabytes of it, on Linux:
# UV_TORCH_BACKEND=cpu for uv and PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for pip avoid it.
UV := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install) --quiet --constraint constraints.txt

# The stamp is written last: an interrupted installation is repeated.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $(if $(UV),uv,pip); the first time takes a few minutes"
	$(if $(UV),$(UV) venv --quiet --allow-existing --python '$(if $(filter-out python3,$(PYTHON)),$(PYTHON),>=3.11)' $(VENV),\
	  @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; set PYTHON=")' && \
	  { $(PYTHON) -c 'import ensurepip, venv' || { echo "error: this Python has no venv; apt install python3-venv" >&2; exit 1; }; } && \
	  $(PYTHON) -m venv $(VENV))
	$(INSTALL) --editable '.[serve,build,release,fleet,dev]'
	@# For the score stage. Of Resemblyzer only the weights are used: its dependencies are large and partly broken.
	$(INSTALL) --no-deps Resemblyzer
	@$(INSTALL) pesq 2>/dev/null || \
	  echo "No pesq: it is compiled, which takes a C compiler and Python's headers. Only the score stage wants it."
	@# DVC asks for git, or to be told that there is none, as in an unpacked archive.
	@git rev-parse --git-dir > /dev/null 2>&1 || $(BIN)/dvc config --local core.no_scm true
	@touch $@
