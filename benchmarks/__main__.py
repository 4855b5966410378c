from benchmarks import checkpointers, commits

checkpointers.main()
commits.main()
