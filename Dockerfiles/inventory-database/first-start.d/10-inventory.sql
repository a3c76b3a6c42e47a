-- Replicas come and go with the load: one that is killed inside a transaction must not keep its locks.
ALTER DATABASE :"DBNAME" SET idle_in_transaction_session_timeout = '30s';
