-- The end of the window in which the last chain was closed for good; NULL if there is no chain.
SELECT date_bin('5 minutes', max(since), 'epoch'::timestamptz) + interval '5 minutes'
FROM lake_chain
