PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: proto
proto: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -Iboxlite_server/_gen=. --python_out=. --grpc_python_out=. --pyi_out=. worker.proto
