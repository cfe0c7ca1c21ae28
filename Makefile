# make demo    train, export, verify, serve and ask, in a virtual environment of its own
# make test    every test
# make test-fast                those that take less than half a second each
# make lint typecheck imports    what CI checks besides the tests
# make package-test              build the sdist and the wheel, install the wheel elsewhere, and run the program
# make image image-grpc          build the serving container, without gRPC or with it
# make image-test                build it, run it locked down, play episodes, stop it under load; image-test-grpc also by gRPC
# make image-arm64               build it for linux/arm64, emulated where this machine is another
# make soak                      ten minutes at full load while new versions of the model arrive, in the container
# make chaos                     two minutes of everything at once, in the container: clients check every answer meanwhile
# make fuzz                      100,000 malformed requests to a server, and 20,000 random bodies for each way to read them
# make reload                    a new version every second for a minute, at full load: no request may fail
# make bench-serve               speed of the server, its floor, FastAPI, MLServer and KServe, and of the checkout in
#                                BASELINE; needs wrk and two idle cores
# make bench-batching            where --batching pays; needs wrk and two idle cores
# make bench-train               speed of training against sb3-contrib, which gets an environment of its own
# make bench-return              seconds of training to a return, against sb3-contrib
# make bench-memory              memory of training against sb3-contrib, and its growth
# make bench-memory-policies     scores where a memory is needed, against sb3-contrib's RecurrentPPO
# make bench-export              bytes and latency of every target
# make bench-growth              cost of an iteration over batch size, networks' width and environments
# make bench-scale               speed of sampling with rollout workers against sb3-contrib and Gymnasium; needs two idle cores
# make bench-act                 latency of one action in process, against other runtimes
# make docs                      write docs/reference/options.md from the code
# make protocol                  compile the messages of gRPC
# make requirements              pin the dependencies again (needs uv)

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
EXTRAS = serve grpc sbom ray all dev

.PHONY: demo docs test test-fast lint typecheck imports package-test image image-grpc image-test image-test-grpc image-arm64 soak chaos fuzz reload \
	protocol bench-serve bench-batching bench-train bench-return bench-memory bench-memory-policies bench-growth bench-export bench-act bench-scale requirements clean

demo: $(VENV)/.installed-all
	$(BIN)/trpo-tf demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 4 --dist worksteal

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal -m 'not slow'

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

package-test: $(VENV)/.installed-dev
	$(BIN)/python tests/package/check_package.py

image image-grpc: $(VENV)/.installed-dev
	$(BIN)/python tests/container/check_image.py --build-only --extra $(if $(findstring grpc,$@),grpc,serve)

image-test image-test-grpc: $(VENV)/.installed-dev
	$(BIN)/python tests/container/check_image.py --extra $(if $(findstring grpc,$@),grpc,serve)

image-arm64:
	tests/container/arm64.sh

soak: $(VENV)/.installed-dev
	$(BIN)/python tests/container/soak.py --minutes 10 --json benchmarks/results/soak.json

chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.container.chaos --json benchmarks/results/chaos.json
	$(BIN)/python -m tests.container.chaos --kept --seconds 60

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.serving.fuzz
	RANDOM_EXAMPLES=20000 $(BIN)/python -m pytest tests/serving/codecs/test_grpc_large.py tests/serving/codecs/test_json_body.py

reload: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.serving.reload

bench-serve: $(VENV)/.installed-dev .venv-fastapi/.installed .venv-mlserver/.installed .venv-kserve/.installed
	$(BIN)/python -m benchmarks.serving.speed --fastapi .venv-fastapi/bin/python --mlserver .venv-mlserver/bin/python \
	  --kserve .venv-kserve/bin/python $(if $(BASELINE),--baseline $(BASELINE))

bench-batching: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.serving.batching

bench-train: $(VENV)/.installed-dev .venv-peer/.installed
	$(BIN)/python -m benchmarks.training.speed --peer .venv-peer/bin/python

bench-return: $(VENV)/.installed-dev .venv-peer/.installed
	$(BIN)/python -m benchmarks.training.time_to_return --peer .venv-peer/bin/python

bench-memory: $(VENV)/.installed-dev .venv-peer/.installed
	$(BIN)/python -m benchmarks.training.memory --peer .venv-peer/bin/python

bench-memory-policies: $(VENV)/.installed-dev .venv-peer/.installed
	.venv-peer/bin/python -m benchmarks.peers.recurrent --seeds 3
	$(BIN)/trpo-tf benchmark partial --seeds 3 --workers 2 --peer sb3-contrib-recurrent --out runs/partial

bench-growth: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.training.growth

bench-export: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.export.targets

bench-act: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.export.act

bench-scale: $(VENV)/.installed-dev .venv-peer/.installed
	$(BIN)/python -m benchmarks.training.scale --peer .venv-peer/bin/python
	$(BIN)/python -m benchmarks.training.scale_model

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/reference/make_options.py

protocol: $(VENV)/.installed-dev
	$(BIN)/python -m grpc_tools.protoc --proto_path=serving/codecs/protocol \
	  --descriptor_set_out=serving/codecs/protocol/compiled.binpb open_inference.proto health.proto reflection.proto

requirements:
	for extra in $(EXTRAS); do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    --no-annotate pyproject.toml --extra $$extra --output-file requirements/$$extra.txt || exit 1; \
	done

clean:
	rm -rf $(VENV) .venv-peer .venv-fastapi .venv-mlserver .venv-kserve build dist *.egg-info

.venv-peer/.installed:
	@test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	@.venv-peer/bin/python -m pip --disable-pip-version-check --quiet install torch==2.13.0 sb3-contrib==2.9.* 'gymnasium[mujoco]'
	@touch $@

.venv-fastapi/.installed: PEER = fastapi uvicorn uvloop httptools onnxruntime granian orjson
.venv-mlserver/.installed: PEER = mlserver==1.7.* onnxruntime
.venv-kserve/.installed: PEER = kserve onnxruntime
.venv-fastapi/.installed .venv-mlserver/.installed .venv-kserve/.installed:
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install $(PEER)
	@touch $@

$(VENV)/.installed-%: requirements/%.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements/$*.txt into $(VENV), a few minutes the first time"
	@$(PIP) install --require-hashes --no-deps --requirement requirements/$*.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
