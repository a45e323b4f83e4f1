// Many small statements as few large ones: what is asked for in one turn of the event loop, or while a statement is under way, goes into the
// next together. Alone it waits for nobody; in a crowd a statement's fixed cost (the round trip, the commit) is shared.

/** More than this in one statement saves nothing more, and all wait for the last. */
const mostTogether = 100
/** A statement that takes longer is stuck (a lock, a link that died): those who came after it go without waiting for its end. */
const patienceMs = 100

interface Waiting<Item, Result> {
  item: Item
  resolve: (result: Result) => void
  reject: (error: unknown) => void
}

export class Together<Item, Result> {
  readonly #act: (items: Item[]) => Promise<Result[]>
  readonly #waiting: Waiting<Item, Result>[] = []
  #isUnderWay = false

  /** `act` answers a result per item, in their order, and may be repeated after it failed. */
  constructor(act: (items: Item[]) => Promise<Result[]>) {
    this.#act = act
  }

  /** Resolves with the item's result. Rejects with what `act` throws for it alone. */
  add(item: Item): Promise<Result> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ item, resolve, reject })
      if (this.#isUnderWay) return
      this.#isUnderWay = true
      setImmediate(() => void this.#run())
    })
  }

  async #run(): Promise<void> {
    while (this.#waiting.length > 0) {
      const carriedOut = this.#carryOut(this.#waiting.splice(0, mostTogether))
      let timer: NodeJS.Timeout | undefined
      const patience = new Promise<void>(resolve => {
        timer = setTimeout(resolve, patienceMs)
      })
      await Promise.race([carriedOut, patience])
      clearTimeout(timer)
    }
    this.#isUnderWay = false
  }

  async #carryOut(batch: Waiting<Item, Result>[]): Promise<void> {
    try {
      const results = await this.#act(batch.map(({ item }) => item))
      for (const [index, { resolve }] of batch.entries()) resolve(results[index] as Result)
    } catch (error) {
      const [first] = batch
      if (batch.length === 1) first?.reject(error)
      // One of them spoils it for all: each by itself, so that only that one fails.
      else await Promise.all(batch.map(each => this.#carryOut([each])))
    }
  }
}
