"""A whole cluster in one thread and in virtual time: real coordinators and worker services, and between them
a network that does its worst. What is made up is time, the wires, and the engine."""
