"""The ledger of tasks, a driver session, and the engines: Ray, or this process. Only this room imports ray."""
