# The developer's habits. `make check` before every push; the server itself needs none of this.

GO       ?= go
FUZZTIME ?= 20s
BENCH    ?= .
# Packages in which goroutines share memory: the race detector costs ten times the CPU.
RACE      = ./storage/... ./endpoint/... ./roomserver/... ./users/... ./federation/... ./syncapi/...

.PHONY: check test fmt vet staticcheck imports specrefs race fuzz chaos order bench bench-joins e2e interop build

check: fmt vet staticcheck imports specrefs test race

# Both engines: a private PostgreSQL is started where its binaries are installed.
test:
	$(GO) test ./...

fmt:
	@unformatted="$$(gofmt -l .)"; test -z "$$unformatted" || { echo "gofmt -w: $$unformatted"; exit 1; }

vet:
	$(GO) vet ./...
	$(GO) vet -tags goolm ./...

staticcheck:
	$(GO) tool staticcheck ./...

imports:
	$(GO) test -run 'Imports' ./test

# Every `// spec:` reference with its section's or rule's first words, and the code and tests beside it.
specrefs:
	$(GO) run ./test/specrefs

race:
	CGO_ENABLED=1 $(GO) test -race -short $(RACE)

# Every fuzz target for FUZZTIME; the oracle of the rules needs an experiment of the compiler.
fuzz:
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "== $$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done
	GOEXPERIMENT=jsonv2 $(GO) test -run '^$$' -fuzz '^FuzzOracle$$' -fuzztime $(FUZZTIME) ./roomserver/auth

# Servers under partitions, lost requests and SIGKILL: make chaos SEEDS=20 FIRST=1
SEEDS ?= 10
FIRST ?=
chaos:
	CHANCERY_CHAOS_SEEDS=$(SEEDS) CHANCERY_CHAOS_FIRST=$(FIRST) $(GO) test -count=1 -v -timeout 4h -run TestChaos ./test/chaos

# Rooms of all versions told in any order: make order SEEDS=20 FIRST=1
order:
	ORDER_SEEDS=$(SEEDS) ORDER_FIRST=$(or $(FIRST),1) $(GO) test -count=1 -timeout 4h -run TestOrderOfDelivery ./roomserver

# make bench BENCH=Append
bench:
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

# Joins of rooms with so many members on both engines: time to the first message, time and memory to the whole room,
# bytes in the database for each change of membership. Uses Linux's /proc.
MEMBERS ?= 1000,10000,100000
bench-joins:
	CHANCERY_BENCH_MEMBERS=$(MEMBERS) $(GO) test -count=1 -v -timeout 60m -run TestJoinsOfLargeRooms ./test/bench

# Real servers and encrypting clients in one go, told aloud.
e2e:
	$(GO) test -count=1 -v -tags goolm ./test/...

# Our binary beside other people's servers, told aloud: a real Synapse, which is installed from the package index
# into the user's cache, and a real Dendrite where DENDRITE names its binary. RUN chooses stories:
# make interop RUN='TestInterop/synapse/SQLite/knock', make interop RUN=TestBrowserClients
RUN ?= .
interop: build
	CHANCERY_INTEROP=1 $(GO) test -count=1 -v -timeout 2h -tags goolm -run '$(RUN)' ./test/interop
	@echo "for other test suites: CHANCERY=$(CURDIR)/bin/chancery $(CURDIR)/test/interop/serve.sh starts a server"

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/chancery ./cmd/chancery
