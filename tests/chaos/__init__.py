"""A real cluster under real traffic, while what it stands on is killed, frozen and cut off: `make chaos`.

__main__.py    the program: its flags, its order, and the counts that it prints
isolation.py   the namespaces in which all of it lives, and with which all of it ends
world.py       the machines, their network, engines and processes
postgres.py    a PostgreSQL server and the balancer before several coordinators
faults.py      what happens to them, planned from the seed
traffic.py     the clients
history.py     what the clients asked and what they were told
model.py       what must be there, by the history
check.py       what is there, held against the model
"""
