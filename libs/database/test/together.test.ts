// Statements for several at once: who waits for whom, and what one that fails does to the others.
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { Together } from '../src/together.ts'

/** Takes two milliseconds, fails for a batch that holds `bad`, and keeps the batches. */
function recorded() {
  const batches: string[][] = []
  const together = new Together<string, string>(async items => {
    batches.push(items)
    await sleep(2)
    if (items.includes('bad')) throw new Error('spoilt')
    return items.map(item => `${item}!`)
  })
  return { batches, together }
}

test('what is asked for in one turn goes together; what comes meanwhile goes next, together', async () => {
  const { batches, together } = recorded()
  const first = ['a', 'b'].map(item => together.add(item))
  await sleep(1)
  const later = ['c', 'd', 'e'].map(item => together.add(item))
  expect(await Promise.all([...first, ...later])).toEqual(['a!', 'b!', 'c!', 'd!', 'e!'])
  expect(batches).toEqual([
    ['a', 'b'],
    ['c', 'd', 'e'],
  ])
  expect(await together.add('f')).toBe('f!')
})

test('one that fails fails alone', async () => {
  const { together } = recorded()
  const outcomes = await Promise.allSettled(['a', 'bad', 'b'].map(item => together.add(item)))
  expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
  await expect(together.add('bad')).rejects.toThrow('spoilt')
  expect(await together.add('c')).toBe('c!')
})

test('who comes after one that is stuck does not wait for its end', async () => {
  let free: (results: string[]) => void = () => {}
  const together = new Together<string, string>(items =>
    items.includes('stuck')
      ? new Promise(resolve => {
          free = resolve
        })
      : Promise.resolve(items),
  )
  const stuck = together.add('stuck')
  await sleep(5)
  expect(await together.add('a')).toBe('a')
  free(['late'])
  expect(await stuck).toBe('late')
})

test('a crowd is carried out in statements of a hundred', async () => {
  const { batches, together } = recorded()
  const items = Array.from({ length: 250 }, (_, index) => String(index))
  expect(await Promise.all(items.map(item => together.add(item)))).toEqual(items.map(item => `${item}!`))
  expect(batches.map(({ length }) => length)).toEqual([100, 100, 50])
})
