CREATE TEMP TABLE told (
    market text PRIMARY KEY, ticker text, korean_name text, english_name text, warning boolean, cautions text[],
    tick_size numeric(20, 10)
) ON COMMIT DROP
