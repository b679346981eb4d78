"""Small real backends that the demo and the tests run like any other: `minilm` embeds text, `echo` repeats it."""
