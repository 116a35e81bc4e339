"""The experiments of Hasegawa & Yasuda (arXiv 2503.19429), and those it leaves open."""
