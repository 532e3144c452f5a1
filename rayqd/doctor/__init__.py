"""What `rayqd doctor` looks at: software, machine, and what has to be tried in a process of its own."""
