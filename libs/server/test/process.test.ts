import { spawn } from 'node:child_process'
import { expect, test } from 'vitest'

const sources = new URL('../src/', import.meta.url).href

/** Runs `body` as the start function of a process of its own; `signals` are sent, one by one, when it says `ready` or the text before each. */
async function run(body: string, signals: { after: string; signal: NodeJS.Signals }[] = []) {
  const code = `
    const { runMain } = await import('${sources}process.ts')
    const { createLog } = await import('${sources}log.ts')
    const { setTimeout: sleep } = await import('node:timers/promises')
    const say = text => process.stdout.write(text + '\\n')
    const log = createLog({ level: 'info', name: 'test' })
    await runMain({ log, stopLimitMs: 500, start: async own => { ${body} } })`
  const child = spawn(process.execPath, ['--input-type=module', '-e', code])
  let out = ''
  let log = ''
  let sent = 0
  child.stderr.on('data', data => {
    log += data
  })
  child.stdout.on('data', data => {
    out += data
    for (let next = signals[sent]; next && out.includes(next.after); next = signals[sent]) {
      sent++
      child.kill(next.signal)
    }
  })
  const status = await new Promise<number | string | null>(resolve =>
    child.once('close', (exitCode, signal) => resolve(exitCode ?? signal)),
  )
  return { status, out: out.trim().split('\n'), log }
}

const aPart = "own('database', () => say('database stopped')); own('door', async () => { await sleep(20); say('door stopped') });"

test('a signal stops the parts in reverse order, once', async () => {
  const { status, out } = await run(`${aPart} setInterval(() => {}, 1000); say('ready')`, [{ after: 'ready', signal: 'SIGTERM' }])
  expect({ status, out }).toEqual({ status: 0, out: ['ready', 'door stopped', 'database stopped'] })
})

test('a signal in the middle of the start stops what was started', async () => {
  const { status, out } = await run(`${aPart} say('ready'); await sleep(100); say('started')`, [{ after: 'ready', signal: 'SIGINT' }])
  expect({ status, out }).toEqual({ status: 0, out: ['ready', 'started', 'door stopped', 'database stopped'] })
})

test('a second signal ends at once', async () => {
  const { status, out } = await run(
    `own('slow', async () => { say('stopping'); await sleep(400) }); say('ready'); setInterval(() => {}, 1000)`,
    [
      { after: 'ready', signal: 'SIGTERM' },
      { after: 'stopping', signal: 'SIGTERM' },
    ],
  )
  expect({ status, out }).toEqual({ status: 1, out: ['ready', 'stopping'] })
})

test('a failed start undoes what it started and says why', async () => {
  const { status, out, log } = await run(`${aPart} throw new Error('no port')`)
  expect({ status, out }).toEqual({ status: 1, out: ['door stopped', 'database stopped'] })
  expect(log).toContain('no port')
})

test('a part that fails or never stops does not keep the others', async () => {
  const failing = await run(`${aPart} own('bus', () => { throw new Error('link down') }); say('ready'); setInterval(() => {}, 1000)`, [
    { after: 'ready', signal: 'SIGTERM' },
  ])
  expect(failing).toMatchObject({ status: 1, out: ['ready', 'door stopped', 'database stopped'] })
  expect(failing.log).toContain('link down')
  const hanging = await run(`own('bus', () => new Promise(() => {})); say('ready'); setInterval(() => {}, 1000)`, [
    { after: 'ready', signal: 'SIGTERM' },
  ])
  expect(hanging.status).toBe(1)
  expect(hanging.log).toContain('not stopped in time')
})

test('an error nobody caught ends the process, loudly', async () => {
  const { status, log } = await run("setTimeout(() => Promise.reject(new Error('forgotten')), 10); setInterval(() => {}, 1000)")
  expect(status).toBe(1)
  expect(log).toContain('forgotten')
  expect(log).toContain('unhandledRejection')
})
