UPDATE market AS m
SET listed = false, valid_from = %(now)s
WHERE m.listed AND NOT EXISTS (SELECT FROM told AS t WHERE t.market = m.market)
RETURNING m.market
