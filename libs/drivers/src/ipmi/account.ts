/** The account we log in with: finding it among the users of the BMC, and its password (IPMI v2.0 22.26 to 22.30). Needs ADMINISTRATOR. */
import { Failure } from '../failure.ts'
import { completed, type Turn, tooShort } from './client.ts'
import { commands, passwordBytesMax, userBytesMax } from './codec.ts'

const presentChannel = 0x0e
/** User ids have six bits. */
const usersMax = 63
/** Users stored for v1.5 sessions hold so many bytes of a password. */
const shortPasswordBytes = 16
const longForm = 0x80
const setPasswordOperation = 2
/** How BMCs answer that know the short form only. */
const withoutLongForm = [0xc7, 0xcc]

/** The number of the user of that name. Throws Failure `refused` where the BMC lists none, though it let us in by that name. */
export async function userIdOf(turn: Turn, name: Buffer): Promise<number> {
  const access = await turn.command(commands.getUserAccess, { data: Buffer.of(presentChannel, 1), privilege: 'ADMINISTRATOR' })
  const facts = completed(access, 'Get User Access', 'This BMC does not list its users. Change the password in its web pages.')
  if (facts.length < 1) throw tooShort('Get User Access', facts)
  const last = Math.min(facts.readUInt8(0) & usersMax, usersMax)
  for (let id = 1; id <= last; id++) {
    const reply = await turn.command(commands.getUserName, { data: Buffer.of(id), privilege: 'ADMINISTRATOR' })
    // A slot that was never used has no name, and some BMCs call that an error.
    if (reply.completionCode !== 0) continue
    const end = reply.data.indexOf(0)
    if (reply.data.subarray(0, end < 0 ? userBytesMax : end).equals(name)) return id
  }
  throw new Failure({
    kind: 'refused',
    got: `none of the ${last} users that the BMC lists has the name of the power settings`,
    hint: 'The account may come from a directory server. Change its password there, and then in the power settings.',
  })
}

/** Sets the password of the user of that name. Setting the same twice is harmless. */
export async function setPassword(turn: Turn, name: Buffer, password: Buffer): Promise<void> {
  const id = await userIdOf(turn, name)
  const send = (form: number, bytes: number) => {
    const data = Buffer.alloc(2 + bytes)
    data.writeUInt8(id | form, 0)
    data.writeUInt8(setPasswordOperation, 1)
    password.copy(data, 2)
    return turn.command(commands.setUserPassword, { data, privilege: 'ADMINISTRATOR' })
  }
  let reply = await send(longForm, passwordBytesMax)
  if (withoutLongForm.includes(reply.completionCode) && password.length <= shortPasswordBytes) reply = await send(0, shortPasswordBytes)
  completed(reply, 'Set User Password', 'The BMC may want another kind of password, or forbid changing this account over the network.')
}

/** Every BMC takes so many bytes, and the short form holds them too. */
export const passwordRule = { bytesMin: 1, bytesMax: shortPasswordBytes } as const
