# Every target is one script of ci/, so that a laptop and CI run the same thing. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-clients cluster-tools test-cluster images test-images lint bench generate verify venv clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Serve the demo model on this machine, without a GPU, and ask it a question
	@ci/demo

test: ## Run every tier of tests that this machine can run
	@ci/test

images: ## Build the images toolkit and triton-cpu with docker, podman or buildah
	@ci/images

test-images: ## Build them on a base of its own making and run them in containerd (root, Debian)
	@ci/test-images

test-clients: ## Test the OpenAI front end with litellm and aiperf, which are heavy
	@ci/test-clients

cluster-tools: ## Build the control plane that test-cluster needs, once a machine (some 6 minutes of two cores)
	@ci/cluster-tools

test-cluster: ## Install the chart on a real Kubernetes control plane, with both Helm majors
	@ci/test cluster

lint: ## Check style, types, layers and scripts
	@ci/lint

bench: ## Measure serving against the raw engine, and estimates against measurements, on this machine
	@ci/bench

generate: ## Write all derived files: schemas, manual, values, chart, golden manifests
	@ci/generate

verify: ## Check that all derived files are what `make generate` would write
	@ci/generate --check

venv: ## Make .venv with everything for development
	@ci/venv all

clean: ## Remove environment, caches and build folders of this checkout
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .engineroom
	@find . -name __pycache__ -prune -exec rm -rf {} +
