"""Who may do what on NATS: accounts, roles, their exact subjects, and the callout that hands them out.

Invariant: only control-plane processes can write the log; a worker reaches its own node's subjects and no other's,
not even by way of the replies to its questions.
"""
