// Starting and stopping by whole definition: a partition that never heard of a machine learns it from the call. Real BMCs, a real database.

import { machines as calls } from '@muster/shared/contract/machines'
import { Refusal } from '@muster/shared/errors'
import { describe, expect, onTestFinished, test } from 'vitest'
import { findSwitch } from '../src/db/power.ts'
import { adoptMachine, startByDefinition, stopByDefinition } from '../src/domain/definition.ts'
import { lookAtDue } from '../src/domain/engine.ts'
import { createMachine, machineDetail } from '../src/domain/machines.ts'
import { Switchboard } from '../src/domain/power/switchboard.ts'
import { runPowerWorker } from '../src/domain/power/worker.ts'
import { openPowerSettings } from '../src/domain/power-settings.ts'
import { operator, reread, startCore, type TestCore } from './harness.ts'
import { settingsOf, startBmcs } from './virtual-bmc.ts'

const never = new AbortController().signal
const start = (core: TestCore, definition: object, more: object = {}) =>
  startByDefinition(core, operator, calls.start.input.parse({ definition, wait: '20s', ...more }), never)
const stop = (core: TestCore, definition: object, more: object = {}) =>
  stopByDefinition(core, operator, calls.stop.input.parse({ definition, wait: '20s', ...more }), never)

async function startWorker(core: TestCore): Promise<void> {
  const board = new Switchboard(core)
  const stopping = new AbortController()
  const worker = runPowerWorker(core, board, stopping.signal)
  onTestFinished(async () => {
    stopping.abort()
    await worker
    await board.close()
  })
}

const refusal = (asked: Promise<unknown>) =>
  asked.then(
    () => 'none',
    (error: unknown) => (error instanceof Refusal ? `${error.code}: ${error.message}` : error),
  )

describe('a machine that somebody else keeps', () => {
  test('is learnt from the order that starts it, stays on, and is stopped by the same definition', async () => {
    const core = await startCore()
    await startWorker(core)
    const [virtual] = await startBmcs(1)
    const definition = {
      hostname: 'web1',
      interfaces: [{ mac: '02:00:00:00:77:01' }],
      powerDriver: 'ipmi',
      powerSettings: settingsOf(virtual as never),
      pool: 'web',
    }
    const started = await start(core, definition)
    expect(started).toMatchObject({
      outcome: 'learnt',
      hostname: 'web1',
      pool: 'web',
      state: 'deployed',
      owner: operator.name,
      order: { state: 'done' },
    })
    expect(virtual?.power).toBe('on')
    // The engine leaves it alone.
    await core.sql`update machines set attention_at = now()`
    await lookAtDue(core)
    expect((await core.sql`select from power_orders where state in ('queued', 'running')`).length).toBe(0)
    const again = await start(core, definition)
    expect(again).toMatchObject({ id: started.id, outcome: 'known', version: (await reread(core, started.id)).version })
    expect(await stop(core, definition)).toMatchObject({ id: started.id, outcome: 'known', order: { action: 'off', state: 'done' } })
    expect(virtual?.power).toBe('off')
  })

  test('is brought in step when the definition has changed; what the definition does not say stays', async () => {
    const core = await startCore()
    await startWorker(core)
    const [virtual] = await startBmcs(1)
    const definition = {
      interfaces: [{ mac: '02:00:00:00:77:02' }],
      powerDriver: 'ipmi',
      powerSettings: settingsOf(virtual as never),
      rack: 'r1',
      note: 'first',
    }
    const { id } = await start(core, definition)
    const changed = await start(core, {
      interfaces: [{ mac: '02:00:00:00:77:02' }, { mac: '02:00:00:00:77:03', name: 'eno2' }],
      hostname: 'renamed',
      powerDriver: 'ipmi',
      powerSettings: { ...settingsOf(virtual as never), privilege: 'ADMINISTRATOR' },
    })
    expect(changed).toMatchObject({ id, outcome: 'changed', hostname: 'renamed', rack: 'r1', note: 'first' })
    expect(changed.interfaces.map(({ mac }) => mac)).toEqual(['02:00:00:00:77:02', '02:00:00:00:77:03'])
    expect(await core.sql`select mac from macs where machine_id = ${id} order by mac`).toMatchObject([
      { mac: '02:00:00:00:77:02' },
      { mac: '02:00:00:00:77:03' },
    ])
    const found = await findSwitch(core.sql, id)
    expect(openPowerSettings(core, found as never)).toMatchObject({ privilege: 'ADMINISTRATOR' })
    // The network card was replaced: the name finds it.
    expect(await start(core, { hostname: 'renamed', interfaces: [{ mac: '02:00:00:00:77:09' }] })).toMatchObject({ id, outcome: 'changed' })
    expect((await machineDetail(core, operator, id)).interfaces).toHaveLength(3)
  })

  test('whose definition contradicts what is known is refused, and nothing is changed', async () => {
    const core = await startCore()
    const created = (hostname: string, mac: string) =>
      createMachine(core, operator, calls.create.input.parse({ hostname, interfaces: [{ mac }], powerDriver: 'manual' }))
    const one = await created('one', '02:00:00:00:77:11')
    const two = await created('two', '02:00:00:00:77:12')
    const of = (hostname: string, ...macs: string[]) => ({ hostname, interfaces: macs.map(mac => ({ mac })), powerDriver: 'manual' })
    expect(await refusal(start(core, of('three', '02:00:00:00:77:11', '02:00:00:00:77:12')))).toContain(
      `already-exists: the definition has MAC addresses of`,
    )
    expect(await refusal(start(core, of('two', '02:00:00:00:77:11')))).toContain(two.id)
    expect(await refusal(start(core, { interfaces: [{ mac: '02:00:00:00:77:13' }] }))).toContain('no-power-driver')
    expect(await reread(core, one.id)).toMatchObject({ state: 'new', version: one.version })
    expect((await core.sql`select from machines`).length).toBe(2)
  })

  test('that the partition keeps itself is not started against its life cycle', async () => {
    const core = await startCore()
    const { id } = await createMachine(
      core,
      operator,
      calls.create.input.parse({ interfaces: [{ mac: '02:00:00:00:77:21' }], powerDriver: 'manual' }),
    )
    await core.sql`update machines set state = 'ready' where id = ${id}`
    expect(await refusal(start(core, { interfaces: [{ mac: '02:00:00:00:77:21' }] }))).toContain('wrong-state')
    await core.sql`update machines set state = 'new' where id = ${id}`
    expect(await adoptMachine(core, operator, id)).toMatchObject({ state: 'deployed', owner: operator.name })
    // The second time joins.
    expect(await adoptMachine(core, operator, id)).toMatchObject({ state: 'deployed' })
  })
})
