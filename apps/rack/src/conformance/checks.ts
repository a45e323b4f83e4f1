// The promises of a partition on the bus, one check each: what a front relies on (docs/protocol.md).
import { digestOf } from '@muster/server/global/lineage'
import { frontGroup } from '@muster/shared/bus/permissions'
import {
  busCalls,
  copyRequest,
  keyRecord,
  logNotice,
  presenceEveryMs,
  presenceLimitMs,
  protocolVersion,
  subjects,
} from '@muster/shared/bus/protocol'
import { allocation } from '@muster/shared/contract/allocations'
import { calls } from '@muster/shared/contract/contract'
import { events } from '@muster/shared/contract/events'
import { session } from '@muster/shared/contract/session'
import { fetchCopy, partOf, readPayload, type SignedCopy } from '@muster/shared/global/copy'
import { newAllocationId, randomText } from '@muster/shared/ids'
import { Broken, type FarEnd } from './far-end.ts'

/** Why a check says nothing, or undefined where it was made and passed. */
export type Outcome = undefined | { readonly skipped: string }

export interface Check {
  readonly name: string
  /** Holds a machine of the partition for a moment, and gives it back. */
  readonly takes?: 'a machine'
  run(far: FarEnd): Promise<Outcome>
}

const must = (kept: boolean, otherwise: string) => {
  if (!kept) throw new Broken(otherwise)
}

const declare = (name: string, run: Check['run']): Check => ({ name, run })

/** A check with the wish for one of its ready machines, which is not held yet. */
const declareTaking = (name: string, run: (far: FarEnd, wish: ReturnType<typeof holdOf>) => Promise<Outcome>): Check => ({
  name,
  takes: 'a machine',
  run: async far => {
    const [machine] = (await far.offers({ purpose: 'take' }))[0]?.machines ?? []
    return machine ? run(far, holdOf([machine.id])) : { skipped: 'it has no machine that is ready' }
  },
})

/** Room for one notice that comes late. */
const presenceWatchMs = presenceLimitMs
/** A front that starts must not wait for the next regular notice. */
const presenceAskedMs = 700

export const checks: readonly Check[] = [
  declare('says that it is there, once a second, under its own name', async far => {
    const notices = await far.listenPresence(presenceWatchMs)
    must(notices.length > 0, `it was not heard on ${subjects.presence(far.name)} for ${presenceWatchMs} ms`)
    must(
      notices.length >= Math.floor(presenceWatchMs / presenceEveryMs) - 1,
      `it was heard only ${notices.length} times in ${presenceWatchMs} ms`,
    )
    for (const { partition } of notices) must(partition === far.name, `it calls itself ${partition}`)
    return undefined
  }),
  declare('says so at once when a front asks who is there', async far => {
    const ask = () => far.bus.publish(subjects.presenceAsk, Buffer.from(JSON.stringify({ v: protocolVersion })))
    const quiet = await far.listenPresence(presenceAskedMs)
    const asked = await far.listenPresence(presenceAskedMs, () => Array.from({ length: 3 }, ask))
    must(
      asked.length > quiet.length,
      `asked three times within ${presenceAskedMs} ms it was heard ${asked.length} times, unasked ${quiet.length} times`,
    )
    return undefined
  }),
  declare('answers what cannot be read with the problem malformed', async far => {
    for (const message of ['not json', '{}', '{"v":1}', 'null']) {
      const answer = far.readAnswer(await far.send(subjects.call(far.name), message))
      must(answer.kind === 'problem' && answer.problem.code === 'malformed', `${message} was not answered with malformed`)
    }
    return undefined
  }),
  declare('refuses a call that it does not know, and a field that it does not know, by name', async far => {
    await far.refused('not-found', 'machines.fly', {})
    const problem = await far.refused('invalid-input', 'machines.list', { colour: 'red' })
    must(problem.errors?.some(({ field }) => field === 'colour') === true, 'the refusal does not name the field')
    return undefined
  }),
  declare('believes no check of roles but its own', async far => {
    await far.refused('forbidden', 'allocation.hold', holdOf(['x1-aaaaaa']), { role: 'read-only' })
    await far.refused('forbidden', 'machines.create', {}, { role: 'user' })
    await far.refused('forbidden', 'machines.list', {}, { role: 'public' })
    return undefined
  }),
  declare('does not answer a question whose deadline has passed', async far => {
    await far.isSilentWhenLate()
    must((await far.offers({}, { deadlineMs: -1 })).length === 0, 'a late question for offers was answered')
    await far.want('session.whoami', {}, session.whoami.answer)
    return undefined
  }),
  declare('offers once, in its own name, no more than was asked, and says why where it has too little', async far => {
    const [notice] = await far.listenPresence(presenceEveryMs * 1.5)
    for (const count of [1, 3]) {
      const offers = await far.offers({ count })
      must(offers.length === 1, `a question for ${count} was answered ${offers.length} times`)
      const [offer] = offers
      must(offer !== undefined && offer.machines.length <= count, `${offer?.machines.length} machines were offered for ${count}`)
      must((offer?.epoch ?? 0) >= (notice?.epoch ?? 0), `its offer is of epoch ${offer?.epoch}, its presence of ${notice?.epoch}`)
      for (const { id } of offer?.machines ?? []) must(id.startsWith(`${far.name}-`), `the id ${id} does not carry its name`)
      must((offer?.machines.length ?? 0) >= count || offer?.why !== undefined, 'it offers too little and does not say why')
    }
    const [nothing] = await far.offers({ constraints: { tags: [`nobody-has-${randomText(8)}`] } })
    must(nothing?.machines.length === 0 && nothing.matching === 0, 'a wish that nobody can meet was not answered with nothing')
    must(nothing?.why !== undefined, 'it does not say what removed its machines')
    return undefined
  }),
  declare('answers every question that is asked of all partitions as the contract says', async far => {
    const asked = [...calls].filter(
      ([, call]) =>
        call.spread.kind === 'gather' && call.rest.method === 'GET' && call.kind !== 'stream' && call.input.safeParse({}).success,
    )
    for (const [name, call] of asked) await far.want(name, {}, call.answer, { role: call.role })
    return undefined
  }),
  declare('numbers its events without gaps', async far => {
    const { items } = await far.want('events.list', { limit: 1000 }, events.list.answer)
    for (const [index, { seq, partition }] of items.entries()) {
      must(partition === far.name, `event ${seq} is of ${partition}`)
      const before = items[index - 1]
      must(before === undefined || seq === before.seq + 1, `event ${seq} follows ${before?.seq}`)
    }
    return items.length < 2 ? { skipped: 'it has too few events yet' } : undefined
  }),
  declare('keeps the first record of a key, and knows none that nobody wrote', async far => {
    const key = `conformance:${randomText(16)}`
    const recordOf = (at: string) => ({ key, requestHash: 'x', allocation: newAllocationId(), createdAt: at, parts: [] })
    const [first, second] = [recordOf('2026-01-01T00:00:00.000Z'), recordOf('2026-01-02T00:00:00.000Z')]
    must((await far.want('key.recall', { key }, keyRecord.nullable())) === null, 'it recalls a key that nobody wrote')
    for (const record of [first, second, first]) {
      const standing = await far.want('key.remember', { record, replaces: null }, keyRecord)
      must(standing.allocation === first.allocation, 'a later record took the place of the first')
    }
    const replaced = await far.want('key.remember', { record: second, replaces: first.allocation }, keyRecord)
    must(replaced.allocation === second.allocation, 'a record that names what it replaces was not written')
    must(
      (await far.want('key.recall', { key }, keyRecord.nullable()))?.allocation === second.allocation,
      'it does not recall what it wrote',
    )
    return undefined
  }),
  declare('hands out the copy of the configuration that it says it holds, and takes none that no key it trusts has signed', async far => {
    const answer = await far.ask('config.copy', { have: 0, part: 0 }, { role: 'admin' })
    if (answer.kind === 'problem' && answer.problem.code === 'not-found') return { skipped: 'it keeps no configuration' }
    const held = await copyOf(far)
    if (!held) return { skipped: 'it holds no configuration yet' }
    const { generation } = readPayload(held.payload).content
    const same = await far.want('config.copy', { have: generation, part: 0 }, busCalls['config.copy'].answer, { role: 'admin' })
    must(same.generation === generation, `it says that it holds generation ${same.generation}, and hands out ${generation}`)
    must(same.text === undefined, 'it hands its copy to somebody who has it')
    await far.refused('forbidden', 'config.copy', { have: 0, part: 0 })
    const [notice] = await far.listenPresence(presenceEveryMs * 1.5)
    const told = notice?.configuration
    must(told === undefined || told.digest === digestOf(held.payload), 'its presence tells of another copy than it hands out')
    // As a front would offer them: newer than what it holds, in other words under the same number, and older.
    const forged = [generation + 1, generation, generation - 1].map(number => ({
      ...held,
      payload: JSON.stringify({ ...JSON.parse(held.payload), generation: number, note: 'conformance' }),
    }))
    const asked = await offerCopies(far, forged, generation + 1)
    must(
      (await copyOf(far))?.payload === held.payload,
      `it took a copy in place of its generation ${generation} whose signature is not right`,
    )
    return asked === 0 ? { skipped: 'it did not ask for a newer configuration that was announced' } : undefined
  }),
  declare('confirms and drops nothing that was never held', async far => {
    const never = newAllocationId()
    await far.refused('nothing-allocated', 'allocation.confirm', { allocation: never })
    const { dropped } = await drop(far, never, 'keep')
    must(dropped === 0, `it dropped ${dropped} machines of an allocation that never was`)
    return undefined
  }),
  declareTaking('holds a machine once, however often it is asked, offers it to nobody meanwhile, and gives it back', async (far, wish) => {
    const held = await hold(far, wish)
    must(held.machines.length === 1, `it holds ${held.machines.length} machines for one`)
    const again = await hold(far, wish)
    must(again.machines[0]?.id === held.machines[0]?.id, 'asked again with the same allocation it holds another machine')
    const [others] = await far.offers({ count: 1000 })
    must(!others?.machines.some(({ id }) => id === held.machines[0]?.id), 'it offers a machine that it holds for somebody')
    must((await drop(far, wish.allocation, 'keep')).dropped === 1, 'giving the hold back did not free its machine')
    must((await drop(far, wish.allocation, 'keep')).dropped === 0, 'giving it back twice freed something twice')
    await far.refused('nothing-allocated', 'allocation.confirm', { allocation: wish.allocation })
    return undefined
  }),
  declareTaking('confirms a hold, and answers the same when asked again', async (far, wish) => {
    await hold(far, wish)
    const id = { allocation: wish.allocation }
    const [first, second] = [await far.want('allocation.confirm', id, allocation), await far.want('allocation.confirm', id, allocation)]
    must(
      first.state === 'confirmed' && first.machines.length === 1,
      `confirmed, the allocation is ${first.state} with ${first.machines.length} machines`,
    )
    must(second.machines[0]?.id === first.machines[0]?.id, 'confirmed again, it is another machine')
    const { dropped } = await drop(far, wish.allocation, 'release')
    must(dropped === 1, `releasing it freed ${dropped} machines`)
    return undefined
  }),
  declareTaking('counts what it holds for a quota as soon as it holds it', async (far, wish) => {
    // Somebody who has nothing else there.
    const owner = { caller: `conformance-${randomText(8)}` }
    const question = { of: [{ owners: [owner.caller] }, { owners: [] }], allocation: wish.allocation }
    const count = async () => (await far.want('quota.count', question, busCalls['quota.count'].answer, owner)).counts
    must((await count())[0]?.machines === 0, 'it counts machines of somebody who has none')
    await far.want('allocation.hold', wish, busCalls['allocation.hold'].answer, owner)
    const [his, nobodys] = await count()
    await drop(far, wish.allocation, 'keep')
    const seen = his && `${his.machines} machines, ${his.held} of them held, ${his.own} for the allocation`
    must(his?.machines === 1 && his.held === 1 && his.own === 1, `of one machine, which it holds, it counts ${seen}`)
    must(nobodys?.machines === 0, `it counts ${nobodys?.machines} machines of nobody`)
    return undefined
  }),
  declareTaking('tells when its log has grown', async (far, wish) => {
    const notices = await far.listen(subjects.log(far.name), logNotice, 2_000, async () => {
      await hold(far, wish)
      await drop(far, wish.allocation, 'keep')
    })
    must(notices.length > 0, `a hold and its end were not told on ${subjects.log(far.name)} within 2 s`)
    const last = Math.max(...notices.map(({ lastSeq }) => lastSeq))
    const { items } = await far.want('events.list', { after: String(last - 1), limit: 1 }, events.list.answer)
    must(items[0]?.seq === last, `it told of event ${last}, which cannot be read`)
    return undefined
  }),
]

const copyOf = (far: FarEnd) =>
  fetchCopy(0, question => far.want('config.copy', question, busCalls['config.copy'].answer, { role: 'admin' })).catch((error: Error) => {
    throw error instanceof Broken ? error : new Broken(`the copy that it hands out is none: ${error.message}`, { cause: error })
  })

/** Fronts beside this one may be asked in its stead, so it is announced again and again. */
const offer = { mostMs: 5_000, everyMs: 400, afterMs: 600 }

/** Announces a generation, and gives one copy after the other to whoever asks. Answers how often that was. */
async function offerCopies(far: FarEnd, copies: readonly SignedCopy[], generation: number): Promise<number> {
  let asked = 0
  const subscription = await far.bus.subscribe(subjects.configurationCopy, { group: frontGroup }, ({ data, reply }) => {
    const question = copyRequest.parse(JSON.parse(Buffer.from(data).toString()))
    const copy = copies[asked++ % copies.length]
    // Offered as newer than what the asker has, whatever it says itself.
    const part = partOf({ generation: question.have + 1, text: JSON.stringify(copy) }, question)
    reply?.(Buffer.from(JSON.stringify({ v: protocolVersion, ...part })))
  })
  const pause = (ms: number) => new Promise(resolve => setTimeout(resolve, ms))
  for (const startedAt = Date.now(); asked < 2 * copies.length && Date.now() - startedAt < offer.mostMs; ) {
    far.bus.publish(subjects.configuration, Buffer.from(JSON.stringify({ v: protocolVersion, generation })))
    await pause(offer.everyMs)
  }
  // Time to take it, for who would.
  await pause(offer.afterMs)
  subscription.stop()
  return asked
}

const hold = (far: FarEnd, wish: ReturnType<typeof holdOf>) => far.want('allocation.hold', wish, busCalls['allocation.hold'].answer)

const drop = (far: FarEnd, allocation: string, confirmed: 'keep' | 'release') =>
  far.want('allocation.drop', { allocation, confirmed }, busCalls['allocation.drop'].answer)

function holdOf(machines: readonly string[]) {
  return {
    allocation: newAllocationId(),
    createdAt: new Date().toISOString(),
    strategy: 'first',
    count: 1,
    note: 'conformance',
    constraints: {},
    wanted: 1,
    machines,
  }
}
