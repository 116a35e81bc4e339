"""Labelled training sets and small models trained on the spot, for the demo and the tests."""
