"""Readers of tables: Parquet, Arrow and the data sets that are saved as such, their columns and their types."""
