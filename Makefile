# Habit's door: every target is ./dev's, which alone knows how.
TARGETS := setup demo test check lint types fmt lock

.PHONY: help $(TARGETS)
help:
	@./dev help
$(TARGETS):
	@./dev $@ $(ARGS)
