# Fetching an image over a path that breaks now and then. curl's own --retry begins at the first byte again, and what it has already sent down a pipe it
# sends twice; so an image is asked for in pieces, and only a whole piece is passed on.
RUN=${RUN:-/run}
PIECE=${PIECE:-16777216}
RETRIES=${RETRIES:-20}

# fetch ARGUMENT…: curl with the patience of an installation. A server that is busy or away is asked again, and so is one whose connection broke; one that
# says no (404, 410 …) is believed at once.
fetch() {
    broken=0
    until fetch_once --retry "$RETRIES" "$@"; do
        ended=$?
        # Of a file, nothing, sending, receiving, an HTTP/2 stream: what broke, as curl numbers it.
        case $ended in 18 | 52 | 55 | 56 | 92) ;; *) return $ended ;; esac
        broken=$((broken + 1))
        [ "$broken" -le "$RETRIES" ] || return $ended
        sleep 1
    done
}

# The same where what came has been passed on already: nothing is asked for twice.
fetch_once() {
    curl --silent --show-error --fail --location --retry-connrefused --retry-max-time 900 --connect-timeout 10 --speed-limit 1000 --speed-time 60 \
        "$@" 2>"$RUN/trouble"
}

# fetch_image URL PERCENT: all of it on the standard output, telling on the way where it stands, up to so many percent of the work. Fails where a piece
# does not come; the reason is in $RUN/trouble.
fetch_image() {
    total=$(size_in_ranges "$1")
    [ -n "$total" ] || { fetch_once "$1"; return; }
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
    fetch --range 0-5 --max-filesize 64 --output "$RUN/piece" --write-out '%header{content-range}' "$1" |
        sed -n 's,^bytes 0-[0-9]*/\([0-9]*\)$,\1,p'
}

# The first bytes of an image, whatever the server makes of a range.
fetch_head() { fetch --range 0-5 "$1" | head -c 6; }
