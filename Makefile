# `make demo` and `make test` work from an empty clone: what they need goes into .venv and node_modules.

BIN  := .venv/bin
JOBS ?= 2
DEMO := examples/chair.png

.PHONY: demo test lint install install-dev gltf-validator

demo: install
	@mkdir -p outputs
	$(BIN)/trellis generate $(DEMO) -o outputs/demo.glb --preview outputs/demo.png --force

test: install-dev lint gltf-validator
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install:
	@./setup.sh --extras image

install-dev:
	@./setup.sh --extras dev,image

# The Khronos validator checks every file that a test writes; tests that need it say so when npm is not there.
gltf-validator:
	@if command -v npm >/dev/null 2>&1; then \
	    cd tests/gltf && { [ node_modules -nt package-lock.json ] || { npm ci --silent && touch node_modules; }; }; \
	else echo "npm is not installed: the glTF validator will not run"; fi
