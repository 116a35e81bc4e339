"""The figures of the report, and the numbers behind them."""
