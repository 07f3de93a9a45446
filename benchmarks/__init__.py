"""Speed and memory beside what people use today, and beside what the machine can do."""
