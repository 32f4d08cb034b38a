"""`make bench-accuracy`: federations on real data whose culprits are known, and how often each method is right.

data → federations (partition, local training, FedAvg) → scenarios (what to ask, and the truth) → methods (the
answers) → measures → table. Every cell's answers stand as one line of JSON; the table is made from these lines.
"""
