"""How any run trains: the loop, the log, schedules, processes. What is trained comes as callables."""
