"""The programs: python -m experiments.{prepare,train,evaluate,forecast,plan,parity,benchmark}."""
