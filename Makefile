# The one list of commands. Each sets up .venv by itself; PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
# One file, one worker. Where a worker dies, the run ends with a failure: with a new worker, xdist may wait for ever.
PYTEST = $(RUN) -m pytest -n 2 --dist loadfile --max-worker-restart 0
RUN := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.development
DOCUMENTATION := $(VENV)/.documentation
# What test-fast runs: one teacher and student by the commands of a bundle (first, since they take longest), each
# method, network, loss and score by its arithmetic, readers of scans, and inference. Left out of these folders is what
# repeats every method in 3D and with few labels, and the long list of damaged scans.
VOLUMES := tests/bundles/test_volumes.py
FAST := $(VOLUMES)::test_model_of_volumes_says_so_and_finds_its_inferer \
	$(VOLUMES)::test_evaluation_takes_the_model_as_any_other tests/training/test_losses.py tests/distillation \
	tests/networks/parity tests/networks/test_build.py tests/data/scans tests/data/dataset tests/evaluation/test_scores.py \
	tests/evaluation/test_surface.py tests/evaluation/test_overlap.py tests/evaluation/test_report.py \
	tests/inference/scans/test_slicewise.py tests/test_class_balance.py tests/test_configuration.py tests/test_described.py \
	tests/test_unlabelled.py --ignore tests/data/scans/test_bad_inputs_list.py \
	--deselect tests/distillation/test_battery.py::test_every_method_teaches_networks_of_volumes \
	--deselect tests/distillation/test_battery.py::test_a_step_on_a_half_labelled_batch

.PHONY: help demo test test-fast test-slow lint bench docs clean
help:
	@echo "make demo       phantom scans and slides, teachers, distilled students, reports, a segmented scan and slide"
	@echo "make test       all quick tests           make test-slow  the ones that take minutes"
	@echo "make test-fast  those of each part's arithmetic, of scans, inference and one bundle: 80 seconds"
	@echo "make lint       style checks              make bench      time and memory, printed"
	@echo "make docs       the documentation as a site: outputs/docs/index.html"
	@echo "make clean      remove .venv and outputs/demo"

demo: $(RUNTIME)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash bundles/demo.sh

test: $(DEVELOPMENT)
	$(PYTEST)

# A worker takes tests of any file from each other here: the fixtures are cheap, and two even halves end sooner.
test-fast: $(DEVELOPMENT)
	$(PYTEST) --dist worksteal $(FAST)

test-slow: $(DEVELOPMENT)
	$(PYTEST) -m slow

lint: $(DEVELOPMENT)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# nnU-Net's network, one of the opponents, without what else its package asks for.
bench: $(DEVELOPMENT)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	$(RUN) -m benchmarks

docs: $(DOCUMENTATION)
	$(RUN) docs/write_options.py
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

clean:
	rm -rf $(VENV) outputs/demo

# torch comes first and alone: once it is there, no other package pulls in another build of it.
$(RUNTIME): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "$$(grep -o '^torch==[0-9.]*' requirements.txt)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(DEVELOPMENT): tests/requirements.txt $(wildcard bundles/requirements-*.txt) pipeline/data/slides/requirements-wsi.txt \
		pipeline/inference/scans/requirements-dicom-seg.txt $(RUNTIME)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

$(DOCUMENTATION): docs/requirements.txt $(RUNTIME)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@
