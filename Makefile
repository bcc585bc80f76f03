# Everything runs in .venv, which the first target that needs it sets up: python3 (3.11 or later) is all that must be there.
# uv is used where it is found. `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin
# More arguments for a target's command: make test ARGS="-k chunker", make bench ARGS="--turns 10", make room ARGS="--help"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo phone room test boson parity check format bench livekit livekit-server test-livekit test-dashboard bench-room bench-gpu nano-eval clean distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | \
		while IFS="$$(printf '\t')" read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

setup: ## set up .venv, or see that it is (every other target does this first)
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) is not on PATH; install Python 3.11 or later" >&2; exit 1; }
	@$(PYTHON) scripts/setup_env.py

demo: setup ## hear an agent's streamed text in a WebRTC room, with a barge-in: a table, out/demo.wav, out/demo.png
	@$(BIN)/python agents/demo.py $(ARGS)

phone: setup ## answer telephone calls on port 8080 (docs/phone.md); ARGS=--unsigned to try it on this machine
	@$(BIN)/python agents/phone_bot.py $(ARGS)

room: setup ## talk with the same agent in a browser on this machine
	@$(BIN)/python agents/pipecat_bot.py $(ARGS)

test: setup ## run the tests
	@$(BIN)/python -m pytest $(TEST_SKIPS) $(ARGS)

boson: setup ## set up .venv-boson, where boson_multimodal runs as the engine boson:MODEL
	@$(PYTHON) scripts/setup_env.py boson

parity: boson ## boson_multimodal, transformers and ours, token for token
	@$(BIN)/python -m pytest -o faulthandler_timeout=600 tests/parity/parity_*.py $(ARGS)

check: setup ## ruff, pyright, and the code in the documents
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/python -m pytest tests/test_readme.py

# `make check test` runs the documents' code once.
TEST_SKIPS := $(if $(filter check,$(MAKECMDGOALS)),--ignore=tests/test_readme.py)

format: setup ## let ruff repair and format the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: setup ## time to first audio over a conversation of 50 turns; prints the hardware and one JSON line
	@$(BIN)/higgs-voice bench context --turns 50 $(ARGS)

livekit: livekit-server ## talk with the LiveKit agent: starts server, engine and worker here, prints a join link
	@$(BIN)/python agents/livekit_local.py $(ARGS)

livekit-server: setup ## find livekit-server, or build the pinned one into .tools (needs Go 1.26)
	@$(BIN)/python scripts/livekit_server.py --install

test-livekit: livekit-server ## a real LiveKit room on this machine: server, engine, worker, caller
	@$(BIN)/python -m pytest tests/e2e/livekit_*.py $(ARGS)

test-dashboard: setup ## the Grafana dashboard's queries against a real Prometheus (Debian: apt-get install prometheus)
	@$(BIN)/python -m pytest tests/e2e/prometheus_dashboard.py $(ARGS)

bench-gpu: setup ## on a machine with a GPU: kernels, captured steps, and every figure at the published model's size; goes on where it stopped
	@$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-room: livekit-server ## what a LiveKit room adds to the engine's time to first audio
	@$(BIN)/python benchmarks/room.py $(ARGS)

nano-eval: setup ## what the embedded voice is worth: word error, one voice, cloning; needs Debian's flite
	@command -v flite >/dev/null || { echo "nano-eval: flite is not on PATH; run: apt install flite" >&2; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" uv pip install -q -p $(BIN)/python -c constraints.txt -e ".[training]"
	@$(BIN)/python -m training.evaluate $(ARGS)

clean: ## remove what runs and builds leave behind
	@rm -rf out dist build .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	@rm -rf .venv .venv-boson
