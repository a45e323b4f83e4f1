// postgres.js 3.4.9 does not bear the loss of its connections: a statement behind the loss of a transaction's connection (its own "rollback" at the latest)
// is written to a socket that is null by then, which ends the process outside every promise; what was on its way when a write failed is never answered, and
// stands in the way of all that comes after on the next connection, until the whole pool is dead. Known (porsager/postgres #1154, #1168, #1208, #1209) and
// released in no version yet: until one is, these lines are put right as the modules are loaded. Remove this file when they are.
import { registerHooks } from 'node:module'

interface Mend {
  readonly why: string
  readonly from: string
  readonly to: string
}

const mends: Readonly<Record<string, readonly Mend[]>> = {
  'connection.js': [
    {
      why: 'what was to be written is not written in front of the next greeting, and every statement that was on its way is answered',
      from: `    clearImmediate(nextWriteTimer)
    socket.removeListener('data', data)
    socket.removeListener('connect', connected)
    idleTimer.cancel()
`,
      to: `    clearImmediate(nextWriteTimer)
    chunk = nextWriteTimer = null
    const lost = errorResponse || Errors.connection('CONNECTION_CLOSED', options, socket)
    stream && (stream.destroy(lost), stream = null)
    query && !initial && queryError(query, lost)
    while (sent.length)
      queryError(sent.shift(), lost)
    query = results = errorResponse = null
    result = new Result()
    socket.removeListener('data', data)
    socket.removeListener('connect', connected)
    idleTimer.cancel()
`,
    },
    {
      why: 'a connection lost in its first question is told to whoever wanted it, and to the process it is nothing',
      from: '        return fetchArrayTypes()\n',
      to: '        return void fetchArrayTypes().catch(() => {})\n',
    },
  ],
  'index.js': [
    {
      why: 'a transaction knows that its connection is lost, from its first word on',
      from: `      , connection
      , prepare = null

    try {
      await sql.unsafe('begin '`,
      to: `      , connection
      , prepare = null
      , lost = null
      , onlost = null

    try {
      await sql.unsafe('begin '`,
    },
    {
      why: 'the same',
      from: '        new Promise((_, reject) => connection.onclose = reject)\n',
      to: '        new Promise((_, reject) => lost ? reject(lost) : onlost = reject)\n',
    },
    {
      why: 'no statement of it goes to whoever has the connection by then',
      from: `        q.catch(e => uncaughtError || (uncaughtError = e))
        c.queue === full`,
      to: `        q.catch(e => uncaughtError || (uncaughtError = e))
        if (lost)
          return q.reject(lost)
        c.queue === full`,
    },
    {
      why: 'nor waits for ever for its turn',
      from: `      connection = c
      move(c, reserved)
`,
      to: `      connection = c
      c.onclose = e => {
        lost = e
        while (queries.length)
          queries.shift().reject(e)
        onlost && onlost(e)
      }
      move(c, reserved)
`,
    },
  ],
}

const moduleName = /\/node_modules\/postgres\/src\/(connection|index)\.js$/

/** Mends postgres.js. To be called before anything imports it; what imports it fails where it is not as it was known. */
export function mendPostgres(): void {
  registerHooks({
    load(url, context, nextLoad) {
      const loaded = nextLoad(url, context)
      const name = moduleName.exec(url)?.[1]
      if (name === undefined) return loaded
      return { ...loaded, source: (mends[`${name}.js`] ?? []).reduce(mended, String(loaded.source)) }
    },
  })
}

function mended(source: string, { from, to, why }: Mend): string {
  if (source.split(from).length !== 2)
    throw new Error(`postgres.js is not the one that was mended (${why}): look at libs/database/src/mended-postgres.ts`)
  return source.replace(from, () => to)
}
