from memstate_langgraph.cli import main

main()
