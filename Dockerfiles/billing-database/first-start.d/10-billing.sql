-- billing-app acknowledges a message once its row is committed: then the row has to be on disk, whatever the server's default.
ALTER DATABASE :"DBNAME" SET synchronous_commit = 'on';
-- A killed billing-app must not keep the locks of an unfinished transaction from its successor.
ALTER DATABASE :"DBNAME" SET idle_in_transaction_session_timeout = '30s';
