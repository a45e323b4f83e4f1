# Fetching an image over a path that breaks now and then. curl's own --retry begins at the first byte again, and what it has already sent down a pipe it
# sends twice; so an image is asked for in pieces, and only a whole piece is passed on.
RUN=${RUN:-/run}
PIECE=${PIECE:-16777216}
RETRIES=${RETRIES:-20}

# fetch ARGUMENT…: curl with the patience of an installation.
fetch() {
    curl --silent --show-error --fail --location --retry "$RETRIES" --retry-all-errors --retry-max-time 900 --connect-timeout 10 --speed-limit 1000 --speed-time 60 \
        "$@" 2>"$RUN/trouble"
}

# fetch_image URL PERCENT: all of it on the standard output, telling on the way where it stands, up to so many percent of the work. Fails where a piece
# does not come; the reason is in $RUN/trouble.
fetch_image() {
    total=$(size_in_ranges "$1")
    [ -n "$total" ] || { fetch --retry 0 "$1"; return; }
    have=0
    while [ "$have" -lt "$total" ]; do
        last=$((have + PIECE - 1))
        [ "$last" -lt "$total" ] || last=$((total - 1))
        fetch --range "$have-$last" --max-filesize "$PIECE" --output "$RUN/piece" "$1" || return 1
        cat "$RUN/piece" || return 1
        have=$((last + 1))
        stand download '' $((have * $2 / total))
    done
    rm -f "$RUN/piece"
}

# The size that the server gives with a part of the image; nothing where it gives no parts: one that sends everything exceeds the limit at once, which is
# no reason to ask again.
size_in_ranges() {
    fetch --no-retry-all-errors --range 0-5 --max-filesize 64 --output "$RUN/piece" --write-out '%header{content-range}' "$1" |
        sed -n 's,^bytes 0-[0-9]*/\([0-9]*\)$,\1,p'
}

# The first bytes of an image, whatever the server makes of a range.
fetch_head() { fetch --no-retry-all-errors --range 0-5 "$1" | head -c 6; }
