from facm.cli.entry import main

main()
