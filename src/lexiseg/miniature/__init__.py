"""The miniature benchmark: six systems trained and measured alike, on one small tower, by one command.

material    the photos, without the classes that nobody may have seen
base        tower, generator and words that all systems start from
tuning      each system, trained from the base by its own recipe
combining   the best combination of their parts, chosen on validation photos
costs       seconds and memory, system by system
questions   what is asked of each
claims      what the papers promise, as differences
findings    numbers with intervals, differences, and what they say about the claims of the papers
report      docs/mini-benchmark.md
running     all of it in order, going on where it was stopped
"""
