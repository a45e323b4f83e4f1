/** The account we log in with: found by walking AccountService, with the rule for passwords that stands there (DSP0266 13.3). */
import type { PasswordRule } from '../driver.ts'
import { Failure } from '../failure.ts'
import { linkOf, list, pathOf, text } from './answer.ts'
import { change } from './change.ts'
import { failureOf, type Turn } from './service.ts'

/** Accounts of one BMC: 16 or so; a service with this many pages of them is broken. */
const pagesMax = 20
/** Where a service states no rule: what those of 2018 and later take, iDRAC9 and iLO5 among them. */
const usualRule: PasswordRule = { bytesMin: 8, bytesMax: 20 }

/** What the service asks of a password. */
export async function passwordRule(turn: Turn): Promise<PasswordRule> {
  const { body } = await turn.get(await servicePath(turn))
  return {
    bytesMin: positive(body.MinPasswordLength) ?? usualRule.bytesMin,
    bytesMax: positive(body.MaxPasswordLength) ?? Math.max(usualRule.bytesMax, positive(body.MinPasswordLength) ?? 0),
  }
}

/** Sets the password of the account of that name. The service blanks it in whatever it answers. */
export async function setPassword(turn: Turn, name: string, password: string): Promise<void> {
  const path = await accountPath(turn, name)
  const answer = await change(turn, path, { Password: password })
  if (answer.status >= 300) throw failureOf(answer, `PATCH ${path}`)
}

async function accountPath(turn: Turn, name: string): Promise<string> {
  const { body } = await turn.get(await servicePath(turn))
  let page = pathOf(linkOf(body.Accounts))
  for (let pages = 0; page !== undefined && pages < pagesMax; pages++) {
    const { body: accounts } = await turn.get(page)
    for (const path of list(accounts.Members).map(member => pathOf(linkOf(member)))) {
      if (path !== undefined && text((await turn.get(path)).body.UserName) === name) return path
    }
    page = pathOf(text(accounts['Members@odata.nextLink']))
  }
  throw new Failure({
    kind: 'refused',
    got: 'none of the accounts that the BMC lists has the name of the power settings',
    hint: 'The account may come from a directory server. Change its password there, and then in the power settings.',
  })
}

async function servicePath(turn: Turn): Promise<string> {
  const path = pathOf(linkOf((await turn.root()).AccountService))
  if (path !== undefined) return path
  throw new Failure({
    kind: 'unsupported',
    got: 'the service has no AccountService',
    hint: 'This BMC does not let its accounts be changed over Redfish. Change the password in its web pages.',
  })
}

const positive = (value: unknown) => (typeof value === 'number' && Number.isInteger(value) && value > 0 ? value : undefined)
