from benchmarks import checkpointers, commits, landing

checkpointers.main()
commits.main()
landing.main()
