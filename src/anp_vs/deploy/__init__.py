"""Networks leave: exported for other runtimes, quantised, published."""
