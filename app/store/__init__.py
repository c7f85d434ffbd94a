"""The database: tables, the one writer and the readers (engine), and the queries."""
