from benchmarks.checkpointers import main

main()
